//! The keyboard controller (i8042), of which only the reset line is wired: `reboot=k`. It has no state.

use std::convert::Infallible;
use std::sync::Arc;

use vm_superio::{I8042Device, Trigger};

use crate::bus::BusDevice;
use crate::machine::{Ending, Exit};

struct ResetLine(Arc<Ending>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.end(Exit::Reset);
        Ok(())
    }
}

/// The controller. Its buffers are always empty, and no keyboard is attached.
pub struct Keyboard(I8042Device<ResetLine>);

impl Keyboard {
    /// A controller whose reset line ends the machine.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self(I8042Device::new(ResetLine(ending)))
    }
}

impl BusDevice for Keyboard {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill_with(|| self.0.read(offset as u8));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            match self.0.write(offset as u8, *byte) {
                Ok(()) => {}
                Err(never) => match never {},
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_ends_the_machine() {
        let ending = Arc::new(Ending::new().unwrap());
        let mut keyboard = Keyboard::new(ending.clone());
        let mut status = [0xff];
        keyboard.read(4, &mut status);
        assert_eq!(status[0] & 2, 0, "the controller takes commands");
        keyboard.write(0, &[0xfe]);
        keyboard.write(4, &[0x60]);
        assert_eq!(ending.exit(), None);
        keyboard.write(4, &[0xfe]);
        assert_eq!(ending.exit(), Some(Exit::Reset));
    }
}
