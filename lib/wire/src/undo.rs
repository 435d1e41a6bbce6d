//! What a verb has done so far, as the steps that take it back.

use crate::Error;

type Step = Box<dyn FnOnce() -> Result<(), Error> + Send>;

/// A stack of undo steps. Each step of a verb pushes its own; when the verb fails, or its reply cannot be delivered,
/// they run, last first. [`Undo::commit`] forgets them. A stack that is dropped uncommitted (a panic) runs too.
#[derive(Default)]
pub struct Undo(Vec<(String, Step)>);

impl Undo {
    /// Remembers how to take back what was just done. `what` names it in a log.
    pub fn push(
        &mut self,
        what: impl Into<String>,
        step: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) {
        self.0.push((what.into(), Box::new(step)));
    }

    /// Takes everything back, last first, going on past failures.
    pub fn run(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        while let Some((what, step)) = self.0.pop() {
            log::debug!("undoing {what}");
            if let Err(error) = step() {
                log::warn!("cannot undo {what}: {error}");
                errors.push(Error { message: format!("cannot undo {what}: {}", error.message), ..error });
            }
        }
        errors
    }

    /// What was done stays.
    pub fn commit(&mut self) {
        self.0.clear();
    }

    /// Whether there is nothing to take back.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn steps_run_last_first_and_past_failures() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for n in 0..3 {
            let order = order.clone();
            undo.push(format!("step {n}"), move || {
                order.lock().unwrap().push(n);
                if n == 1 { Err(Error::usage("no")) } else { Ok(()) }
            });
        }
        let errors = undo.run();
        assert_eq!(*order.lock().unwrap(), [2, 1, 0]);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].message, "cannot undo step 1: no");
    }

    #[test]
    fn a_committed_stack_does_nothing_and_a_dropped_one_runs() {
        let count = Arc::new(Mutex::new(0));
        let step = |count: &Arc<Mutex<i32>>| {
            let count = count.clone();
            move || {
                *count.lock().unwrap() += 1;
                Ok(())
            }
        };
        let mut kept = Undo::default();
        kept.push("kept", step(&count));
        kept.commit();
        drop(kept);
        assert_eq!(*count.lock().unwrap(), 0);
        let mut dropped = Undo::default();
        dropped.push("dropped", step(&count));
        drop(dropped);
        assert_eq!(*count.lock().unwrap(), 1);
    }
}
