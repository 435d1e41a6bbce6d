//! Ending early: a verb asks between its steps whether its work is still wanted.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Kind};

thread_local! {
    static GIVEN_UP: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Fails if SIGINT or SIGTERM asked this program to end, or if who asked for this thread's work has gone: verbs call it
/// between steps, so that what they have done so far is undone.
///
/// # Errors
/// `timeout`, code `wire.interrupted`.
pub fn check_interrupt() -> Result<(), Error> {
    let interrupted = |by: String| Err(Error::new(Kind::Timeout, "wire.interrupted", by).retry());
    if let Some(signal) = sys::signals::pending() {
        return interrupted(format!("interrupted by signal {signal}"));
    }
    if GIVEN_UP.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))) {
        return interrupted("interrupted: who asked for it has gone".to_owned());
    }
    Ok(())
}

/// Does some work on this thread that is interrupted when `given_up` becomes true, as a signal interrupts a program: for
/// one that works for many.
pub fn unless_given_up<T>(given_up: Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    struct Reset(Option<Arc<AtomicBool>>);
    impl Drop for Reset {
        fn drop(&mut self) {
            GIVEN_UP.set(self.0.take());
        }
    }
    let _reset = Reset(GIVEN_UP.replace(Some(given_up)));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_interrupted_when_it_is_given_up_and_other_work_is_not() {
        let given_up = Arc::new(AtomicBool::new(false));
        unless_given_up(given_up.clone(), || {
            assert!(check_interrupt().is_ok());
            given_up.store(true, Ordering::Relaxed);
            assert_eq!(check_interrupt().unwrap_err().code, "wire.interrupted");
            let elsewhere = std::thread::spawn(|| check_interrupt().is_ok());
            assert!(elsewhere.join().unwrap(), "another thread's work goes on");
        });
        assert!(check_interrupt().is_ok(), "what comes after it is not");
    }
}
