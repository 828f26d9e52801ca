//! 4-bit packing.

use proptest::prelude::*;
use requant_core::{Error, QuantType, pack::*};

#[test]
fn the_first_integer_is_in_the_low_bits() {
    assert_eq!(pack_int4(&[1i8, -1, -8]).unwrap(), [0xF1, 0x08]);
    assert_eq!(pack_int4(&[1u8, 15, 8]).unwrap(), [0xF1, 0x08]);
    assert_eq!(unpack_int4::<i8>(&[0xF1, 0x08], 3).unwrap(), [1, -1, -8]);
    assert_eq!(unpack_int4::<u8>(&[0xF1, 0x08], 3).unwrap(), [1, 15, 8]);
    assert_eq!(pack_int4::<i8>(&[]).unwrap(), [0u8; 0]);
}

#[test]
fn refusals() {
    let overflow = |value, index, dtype| Err(Error::Overflow { value, index, dtype });
    assert_eq!(pack_int4(&[0i8, 8]), overflow(8, 1, QuantType::I4));
    assert_eq!(pack_int4(&[-9i8]), overflow(-9, 0, QuantType::I4));
    assert_eq!(pack_int4(&[16u8]), overflow(16, 0, QuantType::U4));
    assert_eq!(pack_int4(&[0i16, 300]), overflow(300, 1, QuantType::I4));
    for count in [0_usize, 1, 2, 5] {
        let error = Error::Length {
            what: "packed data",
            expected: count.div_ceil(2),
            got: 2,
        };
        assert_eq!(unpack_int4::<u8>(&[0; 2], count), Err(error));
    }
}

proptest! {
    #[test]
    fn round_trips(signed in prop::collection::vec(-8i8..=7, 0..40), unsigned in prop::collection::vec(0u8..=15, 0..40)) {
        prop_assert_eq!(unpack_int4::<i8>(&pack_int4(&signed).unwrap(), signed.len()).unwrap(), signed);
        prop_assert_eq!(unpack_int4::<u8>(&pack_int4(&unsigned).unwrap(), unsigned.len()).unwrap(), unsigned);
    }

    #[test]
    fn every_byte_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        prop_assert_eq!(pack_int4(&unpack_int4::<i8>(&bytes, 2 * bytes.len()).unwrap()).unwrap(), bytes);
    }
}
