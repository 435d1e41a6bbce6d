//! Loop devices of images, shared, and of CoW files, private.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use sys::loop_device::{Attach, FileId, LoopDevice, bound};
use wire::Host;

use crate::Error;
use crate::image::Image;
use crate::owner::Owner;

/// The lock under which a root's processes look for an image's loop device and make it if there is none, so that two at
/// once end up with one. No sandbox's lock has a dot in its name.
const LOCK: &str = "cow.loops";

/// The loop device of an image, read-only: one for all disks of the root. Held open by the caller until a mapped device
/// uses it; the kernel detaches it when the last of them is gone.
pub(crate) fn share(
    image: &Image,
    owner: &Owner,
    host: &Host,
    wait: Duration,
) -> Result<LoopDevice, wire::Error> {
    let label = owner.origin_label();
    let _lock = host.lock(LOCK, wait)?;
    if let Some(device) = find(image, &label)? {
        log::debug!("{} already has {}", device.path().display(), image.path.display());
        return Ok(device);
    }
    // Through the page cache: what one sandbox has read, the next one finds there.
    let how = Attach { read_only: true, direct_io: false, label: &label };
    Ok(LoopDevice::attach(&image.file, how).map_err(unavailable)?)
}

/// The loop device that has this image, opened: it cannot go away any more. What it has is asked for after that.
fn find(image: &Image, label: &str) -> Result<Option<LoopDevice>, Error> {
    let failed = |source| Error::Image { path: image.path.clone(), source };
    let path = image.path.canonicalize().map_err(failed)?;
    let file = FileId::of(&image.file).map_err(failed)?;
    // Other people's devices are not even opened: the path must be the same. An image that was replaced has
    // ` (deleted)` behind its path there.
    for bound in
        bound().map_err(Error::io("read", "/sys/block"))?.iter().filter(|bound| bound.backing == path)
    {
        let Ok(device) = LoopDevice::open(bound.number) else { continue };
        if let Ok(Some(status)) = device.status()
            && status.file == file
            && status.read_only
            && status.autoclear
            && status.window == (0, 0)
            && status.label == label
        {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// A loop device of its own for a CoW file.
pub(crate) fn attach(path: &Path, owner: &Owner) -> Result<LoopDevice, Error> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::io("open", path))?;
    let label = owner.label();
    // Past the page cache: the guest has one of its own, and so has the mapped device.
    let how = Attach { read_only: false, direct_io: true, label: &label };
    LoopDevice::attach(&file, how).map_err(unavailable)
}

/// The loop devices that have this file, whoever attached it.
pub(crate) fn users(path: &Path) -> Result<Vec<LoopDevice>, Error> {
    let (Ok(path), Ok(file)) = (path.canonicalize(), File::open(path)) else { return Ok(Vec::new()) };
    let file = FileId::of(&file).map_err(Error::io("look at", &path))?;
    let bound = bound().map_err(Error::io("read", "/sys/block"))?;
    let same = |device: &LoopDevice| matches!(device.status(), Ok(Some(status)) if status.file == file);
    let devices = bound.iter().filter(|bound| bound.backing == path);
    Ok(devices.filter_map(|bound| LoopDevice::open(bound.number).ok()).filter(same).collect())
}

fn unavailable(source: std::io::Error) -> Error {
    use nix::errno::Errno as E;
    match source.raw_os_error().map(E::from_raw) {
        Some(E::ENOENT | E::ENXIO | E::ENODEV | E::EACCES | E::EPERM | E::EINVAL | E::ENOTTY) => {
            Error::NoLoop(source)
        }
        _ => Error::Io { what: "attach a file to", path: "/dev/loop-control".into(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Bench {
        dir: tempfile::TempDir,
        image: PathBuf,
    }

    /// `None`, and a line that says so, where there are no loop devices to be had.
    fn bench() -> Option<Bench> {
        if let Err(error) = OpenOptions::new().write(true).open("/dev/loop-control") {
            wrenn_tests::skip::here(format!("loop devices cannot be used: {error}"));
            return None;
        }
        let dir = tempfile::Builder::new().prefix("wrenn-cow-").tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        Some(Bench { dir, image })
    }

    impl Bench {
        fn host(&self, name: &str) -> Host {
            Host::new(self.dir.path().join(name), self.dir.path().join(name).join("run"))
        }

        fn share(&self, name: &str) -> LoopDevice {
            let host = self.host(name);
            let owner = Owner::new(&host, wire::Id::new("sb-1").unwrap());
            let image = Image::open(&self.image).unwrap();
            share(&image, &owner, &host, Duration::from_secs(10)).unwrap()
        }

        fn attached(&self) -> usize {
            bound().unwrap().iter().filter(|bound| bound.backing.starts_with(self.dir.path())).count()
        }

        fn all_gone(&self) -> bool {
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while self.attached() > 0 && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.attached() == 0
        }
    }

    #[test]
    fn those_who_attach_an_image_at_once_share_one_device_that_goes_with_the_last() {
        let Some(bench) = bench() else { return };
        let barrier = std::sync::Barrier::new(16);
        let mut devices: Vec<LoopDevice> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        bench.share("root")
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let paths: std::collections::BTreeSet<_> = devices.iter().map(LoopDevice::path).collect();
        assert_eq!((paths.len(), bench.attached()), (1, 1));
        let status = devices[0].status().unwrap().unwrap();
        assert!(status.read_only && status.autoclear && !status.direct_io);
        assert_eq!(status.file, FileId::of(&File::open(&bench.image).unwrap()).unwrap());
        assert_eq!(std::fs::read(devices[0].path()).unwrap(), vec![7; 1 << 20]);

        let last = devices.pop();
        drop(devices);
        assert_eq!(bench.attached(), 1, "one user is left");
        drop(last);
        assert!(bench.all_gone());
    }

    #[test]
    fn another_root_and_an_image_that_was_replaced_have_devices_of_their_own() {
        let Some(bench) = bench() else { return };
        let first = bench.share("root");
        assert_ne!(bench.share("other").path(), first.path());

        let new = bench.dir.path().join("new");
        std::fs::write(&new, vec![8; 1 << 20]).unwrap();
        std::fs::rename(&new, &bench.image).unwrap();
        let second = bench.share("root");
        assert_ne!(second.path(), first.path());
        assert_eq!(std::fs::read(second.path()).unwrap()[0], 8);
        assert_eq!(std::fs::read(first.path()).unwrap()[0], 7, "who has the old image keeps it");
        drop((first, second));
        assert!(bench.all_gone());
    }

    #[test]
    fn a_device_that_somebody_else_attached_otherwise_is_not_shared() {
        let Some(bench) = bench() else { return };
        let host = bench.host("root");
        let label = Owner::new(&host, wire::Id::new("sb-1").unwrap()).origin_label();
        let file = OpenOptions::new().read(true).write(true).open(&bench.image).unwrap();
        let attach = |read_only, label: &str| {
            LoopDevice::attach(&file, Attach { read_only, direct_io: false, label }).unwrap()
        };
        let others = [attach(false, &label), attach(true, "somebody's"), attach(true, "")];
        let shared = bench.share("root");
        assert!(others.iter().all(|other| other.path() != shared.path()));
        drop((others, shared));
        assert!(bench.all_gone());
    }

    #[test]
    fn users_of_a_file_are_found_and_no_others() {
        let Some(bench) = bench() else { return };
        let owner = Owner::new(&bench.host("root"), wire::Id::new("sb-1").unwrap());
        let device = attach(&bench.image, &owner).unwrap();
        let other = bench.dir.path().join("other");
        std::fs::write(&other, vec![0; 4096]).unwrap();
        let found: Vec<_> = users(&bench.image).unwrap().iter().map(LoopDevice::path).collect();
        assert_eq!(found, [device.path()]);
        assert!(users(&other).unwrap().is_empty());
        assert_eq!(device.status().unwrap().unwrap().label, owner.uuid());
        drop(device);
        assert!(bench.all_gone());
    }
}
