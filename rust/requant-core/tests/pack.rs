//! Packing of 2 and 4 bits.

use proptest::prelude::*;
use requant_core::{Error, QuantType, arrays::Integer, pack::*};

#[test]
fn the_first_integer_is_in_the_low_bits() {
    assert_eq!(pack(&[1i8, -1, -8], QuantType::I4).unwrap(), [0xF1, 0x08]);
    assert_eq!(pack(&[1u8, 15, 8], QuantType::U4).unwrap(), [0xF1, 0x08]);
    assert_eq!(unpack::<i8>(&[0xF1, 0x08], 3, QuantType::I4).unwrap(), [1, -1, -8]);
    assert_eq!(unpack::<u8>(&[0xF1, 0x08], 3, QuantType::U4).unwrap(), [1, 15, 8]);
    assert_eq!(
        pack(&[1i8, -1, 0, -2, -2], QuantType::I2).unwrap(),
        [0b10_00_11_01, 0b10]
    );
    assert_eq!(pack(&[1u8, 3, 0, 2, 2], QuantType::U2).unwrap(), [0b10_00_11_01, 0b10]);
    assert_eq!(
        unpack::<i8>(&[0b10_00_11_01, 0b10], 5, QuantType::I2).unwrap(),
        [1, -1, 0, -2, -2]
    );
    assert_eq!(
        unpack::<u8>(&[0b10_00_11_01, 0b10], 5, QuantType::U2).unwrap(),
        [1, 3, 0, 2, 2]
    );
    assert_eq!(pack(&[0i8; 0], QuantType::I4).unwrap(), [0u8; 0]);
}

#[test]
fn refusals() {
    let overflow = |value, index, dtype| Err(Error::Overflow { value, index, dtype });
    assert_eq!(pack(&[0i8, 8], QuantType::I4), overflow(8, 1, QuantType::I4));
    assert_eq!(pack(&[-9i8], QuantType::I4), overflow(-9, 0, QuantType::I4));
    assert_eq!(pack(&[16u8], QuantType::U4), overflow(16, 0, QuantType::U4));
    assert_eq!(pack(&[0i16, 300], QuantType::I4), overflow(300, 1, QuantType::I4));
    assert_eq!(pack(&[1i8, 2], QuantType::I2), overflow(2, 1, QuantType::I2));
    assert_eq!(pack(&[4u8], QuantType::U2), overflow(4, 0, QuantType::U2));
    let mut far = vec![0u8; 50_000];
    far[49_999] = 77;
    assert_eq!(pack(&far, QuantType::U4), overflow(77, 49_999, QuantType::U4));
    for count in [0_usize, 1, 2, 5] {
        let error = Error::Length {
            what: "packed data",
            expected: count.div_ceil(2),
            got: 2,
        };
        assert_eq!(unpack::<u8>(&[0; 2], count, QuantType::U4), Err(error));
    }
    let dtype = QuantType::U8;
    assert_eq!(pack(&[0u8], dtype), Err(Error::Unpacked { dtype }));
    let (dtype, container) = (QuantType::U4, QuantType::I8);
    assert_eq!(pack(&[0i8], dtype), Err(Error::Container { dtype, container }));
}

fn round_trip<Q: Integer + PartialEq + std::fmt::Debug>(q: &[Q], dtype: QuantType) {
    let packed = pack(q, dtype).unwrap();
    assert_eq!(unpack::<Q>(&packed, q.len(), dtype).unwrap(), q);
}

proptest! {
    #[test]
    fn round_trips(
        i4 in prop::collection::vec(-8i8..=7, 0..200), u4 in prop::collection::vec(0u8..=15, 0..200),
        i2 in prop::collection::vec(-2i8..=1, 0..200), u2 in prop::collection::vec(0u8..=3, 0..200),
    ) {
        round_trip(&i4, QuantType::I4);
        round_trip(&u4, QuantType::U4);
        round_trip(&i2, QuantType::I2);
        round_trip(&u2, QuantType::U2);
    }

    #[test]
    fn every_byte_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let four = unpack::<i8>(&bytes, 2 * bytes.len(), QuantType::I4).unwrap();
        prop_assert_eq!(&pack(&four, QuantType::I4).unwrap(), &bytes);
        let two = unpack::<i8>(&bytes, 4 * bytes.len(), QuantType::I2).unwrap();
        prop_assert_eq!(&pack(&two, QuantType::I2).unwrap(), &bytes);
    }
}
