//! Log lines on stderr, which is the guest's console when the agent is pid 1.

/// Writes one line; a console that is gone is no reason to fail.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "wrenn-envd: {}", format_args!($($arg)*));
    }};
}
pub(crate) use say;
