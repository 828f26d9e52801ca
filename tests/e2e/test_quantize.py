from tests.models import MODELS
def test_a(any_model, digits): pass
