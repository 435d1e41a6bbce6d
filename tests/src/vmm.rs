//! The VMMs that the lifecycle runs on, one after the other.

use std::path::PathBuf;

/// A VMM that runs sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// Firecracker, with the page server outside it.
    Firecracker,
}

impl Vmm {
    /// The name in `spec.vmm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
        }
    }

    /// The variable that names a build of the tester's own.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Firecracker => "WRENN_FIRECRACKER",
        }
    }

    /// The program.
    ///
    /// # Errors
    /// Why it cannot be used here.
    pub fn program(self) -> Result<PathBuf, String> {
        let variable = self.variable();
        let path = std::env::var_os(variable).filter(|path| !path.is_empty());
        let path = PathBuf::from(path.ok_or_else(|| format!("{variable} names no {}", self.name()))?);
        if path.is_file() { Ok(path) } else { Err(format!("{variable}: {} is not a file", path.display())) }
    }
}

/// Makes each of these functions a test on every VMM: `fn name(host: &TestHost)` becomes `firecracker::name`.
#[macro_export]
macro_rules! on_every_vmm {
    ($($name:ident),+ $(,)?) => {
        mod firecracker {
            $(#[test]
            fn $name() {
                let name = concat!("firecracker::", stringify!($name));
                $crate::host::TestHost::run($crate::vmm::Vmm::Firecracker, name, super::$name);
            })+
        }
    };
}
