//! ACPI's sleep and reset registers, so that `poweroff` ends the machine, and `reboot` without `reboot=k` too.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::machine::{Ending, Exit};

/// The sleep register's bit that starts the transition. (ACPI 6.5, table 4.23: SLP_EN)
const ENABLE: u8 = 1 << 5;
/// The sleep type of soft-off: what the DSDT's `_S5` says.
pub const SOFT_OFF: u8 = 5;
/// What the FADT has written to the reset register.
pub const RESET: u8 = 1;

/// The sleep control register, also read as the sleep status (no wake status bit is ever set), and the reset register.
pub struct Power(Arc<Ending>);

impl Power {
    /// Registers that end the machine.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self(ending)
    }
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [value]) if *value == ENABLE | SOFT_OFF << 2 => self.0.end(Exit::Reset),
            (1, [RESET]) => self.0.end(Exit::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(offset: u64, value: u8) -> Option<Exit> {
        let ending = Arc::new(Ending::new().unwrap());
        Power::new(ending.clone()).write(offset, &[value]);
        ending.exit()
    }

    #[test]
    fn soft_off_and_reset_end_the_machine_and_nothing_else_does() {
        assert_eq!(after(0, 0x34), Some(Exit::Reset));
        assert_eq!(after(1, 1), Some(Exit::Reset));
        assert_eq!(after(0, 0x14), None); // the type without the bit
        assert_eq!(after(0, 0x20), None); // another state
        assert_eq!(after(0, 0x80), None); // clearing the wake status
        assert_eq!(after(1, 0), None);
    }
}
