//! The images of `make image`, put under a test's own root.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Where `make image` leaves them: `WRENN_IMAGES`, else `target/image`.
fn source() -> PathBuf {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/image");
    std::env::var_os("WRENN_IMAGES").map_or_else(|| built.into(), PathBuf::from)
}

/// What a root needs to boot `minimal`, as (path in `target/image`, path in the root).
const FILES: [(&str, &str); 3] = [
    ("kernel", "kernels/vmlinux"),
    ("initrd", "kernels/initrd"),
    ("minimal/rootfs.ext4", "images/minimal/rootfs.ext4"),
];

/// Whether the images are there.
///
/// # Errors
/// Which one is not.
pub fn available() -> Result<(), String> {
    for (from, _) in FILES {
        let path = source().join(from);
        if !path.is_file() {
            return Err(format!("{} is not there: make image", path.display()));
        }
    }
    Ok(())
}

/// Puts them under this root. They are read from their place only once: it may be slow (9p, in the lab).
///
/// # Errors
/// What the file systems said.
pub fn install(root: &Path) -> io::Result<()> {
    let cache = std::env::temp_dir().join("wrenn-tests-images");
    for (from, to) in FILES {
        let (cached, to) = (cache.join(to), root.join(to));
        if !cached.is_file() {
            let dir = cached.parent().unwrap_or(&cache);
            fs::create_dir_all(dir)?;
            // A name of its own: other tests may be making the same file, threads of this process among them.
            // Whole or not at all: another test may be at it as well.
            fs::create_dir_all(cached.parent().unwrap_or(&cache))?;
            let beside = tempfile::NamedTempFile::new_in(&cache)?.into_temp_path();
            copy(&source().join(from), &beside)?;
            beside.persist(&cached).map_err(|failed| failed.error)?;
        }
        copy(&cached, &to)?;
    }
    Ok(())
}

/// Puts under this root what the machine in small boots: it looks at nothing but its disk.
///
/// # Errors
/// What the file system said.
pub fn install_toys(root: &Path) -> io::Result<()> {
    for (_, to) in FILES {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        fs::write(&to, [0; 64 << 10])?;
    }
    Ok(())
}

/// Copies a file without its blocks of zeros.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let mut source = File::open(from)?;
    let mut target = File::create(to)?;
    target.set_len(source.metadata()?.len())?;
    let mut block = vec![0; 256 * 1024];
    loop {
        let read = source.read(&mut block)?;
        if read == 0 {
            return Ok(());
        }
        if block[..read].iter().all(|&byte| byte == 0) {
            target.seek(SeekFrom::Current(read as i64))?;
        } else {
            target.write_all(&block[..read])?;
        }
    }
}
