//! COM1: what the guest prints. Nothing is ever typed.

use std::io::Write;

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;

use super::Line;
use crate::bus::BusDevice;

/// The UART. Bytes that the console does not take are lost; the guest is not held up.
pub struct Serial(vm_superio::Serial<Line, NoEvents, Box<dyn Write + Send>>);

/// The UART's registers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
}

impl Serial {
    /// A UART after power-on.
    pub fn new(line: Line, console: Box<dyn Write + Send>) -> Self {
        Self(vm_superio::Serial::new(line, console))
    }

    /// A UART as it was saved.
    ///
    /// # Errors
    /// Says why the state cannot be one of a UART.
    pub fn restore(state: &SerialState, line: Line, console: Box<dyn Write + Send>) -> Result<Self, String> {
        let state = vm_superio::SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        };
        vm_superio::Serial::from_state(&state, line, NoEvents, console)
            .map(Self)
            .map_err(|error| error.to_string())
    }

    /// Its registers.
    pub fn save(&self) -> SerialState {
        let state = self.0.state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }
}

impl BusDevice for Serial {
    // More than one byte is a string instruction: the same register again and again.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill_with(|| self.0.read(offset as u8));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            if let Err(error) = self.0.write(offset as u8, *byte) {
                log::debug!("the serial console lost a byte: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Console(Sender<u8>);

    impl Write for Console {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            data.iter().for_each(|byte| self.0.send(*byte).unwrap());
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_guest_writes_reaches_the_console_and_the_registers_survive_a_restore() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (sender, printed) = channel();
        let line = || Line::new(event.try_clone().unwrap());
        let mut serial = Serial::new(line(), Box::new(Console(sender.clone())));
        serial.write(7, &[0x5a]); // scratch
        serial.write(1, &[2]); // interrupt when the transmitter is empty
        assert_eq!(event.read().unwrap(), 1);
        serial.write(0, b"ok\n");
        assert_eq!(printed.try_iter().collect::<Vec<_>>(), b"ok\n");

        let state: SerialState =
            serde_json::from_str(&serde_json::to_string(&serial.save()).unwrap()).unwrap();
        let mut restored = Serial::restore(&state, line(), Box::new(Console(sender))).unwrap();
        assert_eq!(restored.save(), serial.save());
        assert_eq!(event.read().unwrap(), 1, "an interrupt that nobody took is raised again");
        let mut scratch = [0];
        restored.read(7, &mut scratch);
        assert_eq!(scratch, [0x5a]);
    }

    #[test]
    fn a_state_with_more_input_than_a_fifo_holds_is_refused() {
        let line = || Line::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let mut state = Serial::new(line(), Box::new(std::io::sink())).save();
        state.received = vec![0; 100];
        assert!(Serial::restore(&state, line(), Box::new(std::io::sink())).is_err());
    }
}
