//! Protobuf by hand: fields are written and read by number, as the specification of e2b's envd gives them.

/// A message being written.
#[derive(Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn number(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field << 3));
        self.varint(value);
        self
    }

    pub fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        self.varint(u64::from(field << 3 | 2));
        self.varint(value.as_ref().len() as u64);
        self.0.extend_from_slice(value.as_ref());
        self
    }

    pub fn message(self, field: u32, value: Self) -> Self {
        self.bytes(field, value.0)
    }

    pub fn encode(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field that was read.
#[derive(Clone, Debug)]
pub enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of a message, in order.
pub struct Fields(pub Vec<(u32, Value)>);

impl Fields {
    pub fn decode(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)).expect("a length");
                    let (value, rest) = bytes.split_at(length);
                    bytes = rest;
                    Value::Bytes(value.to_vec())
                }
                other => panic!("wire type {other}"),
            };
            fields.push(((key >> 3) as u32, value));
        }
        Self(fields)
    }

    pub fn all(&self, field: u32) -> impl Iterator<Item = Value> {
        self.0.iter().filter(move |(number, _)| *number == field).map(|(_, value)| value.clone())
    }

    pub fn bytes(&self, field: u32) -> Option<Vec<u8>> {
        self.all(field).find_map(|value| match value {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) => None,
        })
    }

    pub fn text(&self, field: u32) -> Option<String> {
        self.bytes(field).map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    pub fn message(&self, field: u32) -> Option<Self> {
        self.bytes(field).map(|bytes| Self::decode(&bytes))
    }

    pub fn number(&self, field: u32) -> u64 {
        self.all(field)
            .find_map(|value| if let Value::Number(number) = value { Some(number) } else { None })
            .unwrap_or(0)
    }

    /// A `sint32`: zigzag.
    pub fn signed(&self, field: u32) -> i64 {
        let raw = self.number(field) as i64;
        (raw >> 1) ^ -(raw & 1)
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (&byte, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}
