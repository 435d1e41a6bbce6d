//! Netlink attributes: u16 length (with this header, without the padding), u16 type, value, padding to 4 bytes.

/// Marks an attribute that holds attributes.
const NLA_F_NESTED: u16 = 0x8000;

/// A list of attributes.
#[derive(Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// One with these bytes.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// One with a number. nftables wants them big-endian.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// One with a text, which ends with a zero.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// One that holds attributes.
    #[must_use]
    pub fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// The encoded list.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_starts_aligned_and_its_length_leaves_out_the_padding() {
        let list = Attributes::default().text(1, "ab").nest(2, Attributes::default().number(3, 0x0102_0304));
        let [seven, twelve, eight] = [7_u16, 12, 8].map(u16::to_ne_bytes);
        let [one, nested, three] = [1_u16, 2 | 0x8000, 3].map(u16::to_ne_bytes);
        let expected = [
            &seven[..],
            &one,
            b"ab\0",
            b"\0", // padded
            &twelve,
            &nested,
            &eight,
            &three,
            &[1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(list.into_bytes(), expected);
    }
}
