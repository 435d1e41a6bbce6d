//! Ending early: a verb asks between its steps whether its work is still wanted.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Kind};

/// Whether some work is still wanted; if not, why not.
type Check = dyn Fn() -> Result<(), Error> + Send + Sync;

thread_local! {
    /// All that this thread's work depends on.
    static CHECKS: RefCell<Vec<Arc<Check>>> = const { RefCell::new(Vec::new()) };
}

/// Fails if SIGINT or SIGTERM asked this program to end, or if who asked for this thread's work does not want it any
/// more: verbs call it between steps, so that what they have done so far is undone.
///
/// # Errors
/// `timeout`, code `wire.interrupted`; what a check of [`unless`] said.
pub fn check_interrupt() -> Result<(), Error> {
    if let Some(signal) = sys::signals::pending() {
        return Err(interrupted(&format!("interrupted by signal {signal}")));
    }
    // Cloned: a check may itself ask for other work.
    let checks = CHECKS.with_borrow(Clone::clone);
    checks.iter().try_for_each(|check| check())
}

fn interrupted(by: &str) -> Error {
    Error::new(Kind::Timeout, "wire.interrupted", by).retry()
}

/// Does some work on this thread that is interrupted when `check` fails, with its error.
pub fn unless<T>(
    check: impl Fn() -> Result<(), Error> + Send + Sync + 'static,
    work: impl FnOnce() -> T,
) -> T {
    let mut checks = CHECKS.with_borrow(Clone::clone);
    checks.push(Arc::new(check));
    Interest(checks).carry(work)
}

/// Does some work on this thread that is interrupted when `given_up` becomes true, as a signal interrupts a program: for
/// one that works for many.
pub fn unless_given_up<T>(given_up: Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    let check = move || match given_up.load(Ordering::Relaxed) {
        true => Err(interrupted("interrupted: who asked for it has gone")),
        false => Ok(()),
    };
    unless(check, work)
}

/// What the work of a thread depends on, to be taken along to others that share in it.
#[derive(Clone)]
pub struct Interest(Vec<Arc<Check>>);

impl Interest {
    /// That of this thread.
    pub fn of_this_thread() -> Self {
        Self(CHECKS.with_borrow(Clone::clone))
    }

    /// Does some work on this thread that depends on it.
    pub fn carry<T>(self, work: impl FnOnce() -> T) -> T {
        struct Reset(Vec<Arc<Check>>);
        impl Drop for Reset {
            fn drop(&mut self) {
                CHECKS.set(std::mem::take(&mut self.0));
            }
        }
        let _reset = Reset(CHECKS.replace(self.0));
        work()
    }
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

    #[test]
    fn work_within_work_ends_with_either_and_so_does_a_thread_that_shares_in_it() {
        let (outer, inner) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let recalled = inner.clone();
        let check = move || match recalled.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Conflict, "test.recalled", "called back")),
            false => Ok(()),
        };
        let codes = || {
            let interest = Interest::of_this_thread();
            let shared = std::thread::spawn(|| interest.carry(check_interrupt)).join().unwrap();
            [check_interrupt(), shared].map(|done| done.err().map(|error| error.code))
        };
        unless_given_up(outer.clone(), || {
            unless(check, || {
                assert_eq!(codes(), [None, None]);
                inner.store(true, Ordering::Relaxed);
                assert_eq!(codes(), [Some("test.recalled".into()), Some("test.recalled".into())]);
            });
            assert_eq!(codes(), [None, None], "the inner work is over");
            outer.store(true, Ordering::Relaxed);
            assert_eq!(codes(), [Some("wire.interrupted".into()), Some("wire.interrupted".into())]);
        });
    }
}
