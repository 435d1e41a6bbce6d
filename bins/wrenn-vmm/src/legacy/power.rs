//! ACPI's sleep register, so that `poweroff` ends the machine.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::machine::{Ending, Exit};

/// The sleep type of soft-off: what the DSDT's `_S5` says.
pub const SOFT_OFF: u8 = 5;
/// The register's bit that starts the transition. (ACPI 6.5, table 4.23: SLP_EN; the type is in bits 2 to 4.)
const ENABLE: u8 = 1 << 5;

/// The sleep control register, also read as the sleep status: no wake status bit is ever set.
pub struct Power(Arc<Ending>);

impl Power {
    /// A register that ends the machine.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self(ending)
    }
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [ENABLE | SOFT_OFF << 2] {
            self.0.end(Exit::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(value: u8) -> Option<Exit> {
        let ending = Arc::new(Ending::new().unwrap());
        Power::new(ending.clone()).write(0, &[value]);
        ending.exit()
    }

    #[test]
    fn soft_off_ends_the_machine_and_nothing_else_does() {
        assert_eq!(after(0x34), Some(Exit::Reset));
        assert_eq!(after(0x14), None, "the type without the bit");
        assert_eq!(after(0x20), None, "another state");
        assert_eq!(after(0x80), None, "clearing the wake status");
    }
}
