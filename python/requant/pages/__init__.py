"""Results as one self-contained HTML file: no script, no request, inline SVG, at most 500 KB whatever the model."""
