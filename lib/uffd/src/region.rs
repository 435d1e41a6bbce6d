//! The VMM's description of its memory: the JSON array of Firecracker's handshake
//! (`GuestRegionUffdMapping` in its `src/vmm/src/persist.rs`).

use serde_json::Value;

/// The most regions a VMM may have.
pub(crate) const REGIONS: usize = 256;

/// Where pieces of memory lie: every offset and size is a multiple of this.
const SMALLEST_PAGE: u64 = 4096;

/// Larger pages than this no machine has.
const LARGEST_PAGE: u64 = 1 << 30;

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the VMM's address space.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Where its content begins in the memory image, in bytes.
    pub offset: u64,
    /// Bytes of a page of it.
    pub page_size: u64,
}

/// Why a message is not a list of regions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegionFault {
    /// It is the beginning of something that may become one.
    #[error("is cut short")]
    Incomplete,
    /// It can never become one.
    #[error("{0}")]
    Wrong(String),
}

impl Region {
    /// Where the last of these ends in the image, in bytes.
    pub(crate) fn end_of<'a>(regions: impl IntoIterator<Item = &'a Self>) -> u64 {
        regions.into_iter().map(Self::offset_end).max().unwrap_or(0)
    }

    /// Reads the whole list. Regions are checked: they lie on page boundaries, do not wrap around and do not overlap.
    ///
    /// # Errors
    /// What is wrong, or that more is needed.
    pub fn parse_list(bytes: &[u8]) -> Result<Vec<Self>, RegionFault> {
        let wrong = |what: String| RegionFault::Wrong(what);
        let value: Value = serde_json::from_slice(bytes).map_err(|error| match error.is_eof() {
            true => RegionFault::Incomplete,
            false => wrong(format!("is not JSON: {error}")),
        })?;
        let list = value.as_array().ok_or_else(|| wrong("is not an array of regions".into()))?;
        if list.is_empty() || list.len() > REGIONS {
            return Err(wrong(format!("names {} regions; wants 1 to {REGIONS}", list.len())));
        }
        let regions: Vec<Self> = list
            .iter()
            .enumerate()
            .map(|(index, value)| {
                Self::parse(value).map_err(|what| wrong(format!("has a wrong region {index}: {what}")))
            })
            .collect::<Result<_, _>>()?;
        let mut sorted = regions.clone();
        sorted.sort_by_key(|region| region.address);
        match sorted.windows(2).find(|pair| pair[0].end() > pair[1].address) {
            None => Ok(regions),
            Some(pair) => Err(wrong(format!("has regions that overlap at address {:#x}", pair[1].address))),
        }
    }

    fn parse(value: &Value) -> Result<Self, String> {
        let number = |name: &str| match value.get(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("{name} is {value}")),
        };
        let need = |name: &str| number(name)?.ok_or_else(|| format!("it has no {name}"));
        // Both names mean bytes; the one that says KiB is the older, and may be the only one.
        let page_size = match number("page_size")? {
            Some(bytes) => bytes,
            None => need("page_size_kib").map_err(|_| "it has no page_size")?,
        };
        let region = Self {
            address: need("base_host_virt_addr")?,
            size: need("size")?,
            offset: need("offset")?,
            page_size,
        };
        region.check()?;
        Ok(region)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { address, size, offset, page_size } = *self;
        if !page_size.is_power_of_two() || !(SMALLEST_PAGE..=LARGEST_PAGE).contains(&page_size) {
            return Err(format!("page_size {page_size} is no page size"));
        }
        if size == 0 || !size.is_multiple_of(page_size) {
            return Err(format!("size {size} is not a positive multiple of its page size {page_size}"));
        }
        if !address.is_multiple_of(page_size) || address.checked_add(size).is_none() {
            return Err(format!("base_host_virt_addr {address:#x} is no place for {size} bytes"));
        }
        if !offset.is_multiple_of(SMALLEST_PAGE) || offset.checked_add(size).is_none() {
            return Err(format!("offset {offset} is no place for {size} bytes"));
        }
        Ok(())
    }

    /// First address after it.
    pub fn end(&self) -> u64 {
        self.address + self.size
    }

    /// First offset after it.
    pub fn offset_end(&self) -> u64 {
        self.offset + self.size
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.size / self.page_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Vec<Region>, RegionFault> {
        Region::parse_list(text.as_bytes())
    }

    #[test]
    fn firecrackers_message_is_understood_with_either_name_of_the_page_size() {
        let both = r#"[{"base_host_virt_addr":139998756077568,"size":2097152,"offset":4096,"page_size":2097152,"page_size_kib":2097152}]"#;
        let region = Region { address: 139_998_756_077_568, size: 2 << 20, offset: 4096, page_size: 2 << 20 };
        assert_eq!(parse(both).unwrap(), [region]);
        let older = r#"[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size_kib":4096}]"#;
        let region = Region { address: 4096, size: 8192, offset: 0, page_size: 4096 };
        assert_eq!(parse(older).unwrap(), [region]);
    }

    #[test]
    fn what_can_never_be_served_is_refused_with_the_reason() {
        let one = |text: &str| {
            format!("[{}]", text.replace("A", r#""base_host_virt_addr":"#).replace("P", r#""page_size":"#))
        };
        for (text, reason) in [
            ("7".to_owned(), "not an array"),
            ("[]".to_owned(), "0 regions"),
            ("nonsense".to_owned(), "not JSON"),
            ("[{}]x".to_owned(), "not JSON"),
            ("[1]".to_owned(), "no page_size"),
            (one(r#"{A1,"size":4096,"offset":0,P4096}"#), "base_host_virt_addr 0x1"),
            (one(r#"{A0,"size":4097,"offset":0,P4096}"#), "size 4097"),
            (one(r#"{A0,"size":0,"offset":0,P4096}"#), "size 0"),
            (one(r#"{A0,"size":4096,"offset":0,P4}"#), "page_size 4"),
            (one(r#"{A0,"size":4096,"offset":1,P4096}"#), "offset 1"),
            (one(r#"{A0,"size":4096,P4096}"#), "no offset"),
            (one(r#"{A0,"size":"4096","offset":0,P4096}"#), "size is \"4096\""),
            (one(r#"{A0,"size":-4096,"offset":0,P4096}"#), "size is -4096"),
            (one(r#"{A18446744073709547520,"size":8192,"offset":0,P4096}"#), "is no place"),
            (one(r#"{A0,"size":8192,"offset":18446744073709547520,P4096}"#), "is no place"),
            (one(r#"{A0,"size":8192,"offset":0,P4096},{A4096,"size":4096,"offset":8192,P4096}"#), "overlap"),
        ] {
            let RegionFault::Wrong(what) = parse(&text).unwrap_err() else { panic!("{text}") };
            assert!(what.contains(reason), "{text}: {what}");
        }
    }

    proptest! {
        #[test]
        fn every_beginning_of_a_message_asks_for_more(cut in 0usize..100) {
            let text = r#"[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size":4096}]"#;
            if cut < text.len() {
                prop_assert_eq!(parse(&text[..cut]), Err(RegionFault::Incomplete));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Region::parse_list(&bytes);
        }
    }
}
