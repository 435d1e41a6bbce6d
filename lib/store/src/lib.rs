//! What survives a reboot, by name: the documents of sandboxes, their pauses, and the templates (docs/wrenn.md).
#![forbid(unsafe_code)]

mod error;
mod pauses;
mod sandboxes;
mod templates;

pub use error::Error;
pub use pauses::Pauses;
pub use sandboxes::Sandboxes;
pub use templates::{Template, Templates};
