//! Device-mapper, by the `devicemapper` crate: its devices are addressed by uuid, its errors are errnos again, and what
//! it does not find is `None`.

use std::fs::File;
use std::io;

use devicemapper::errors::Error as CoreError;
use devicemapper::{DM, DevId, DmError, DmFlags, DmName, DmOptions, DmUuid};
use nix::errno::Errno;

/// Where device-mapper is controlled.
pub const CONTROL: &str = "/dev/mapper/control";

/// The kernel's device-mapper.
pub struct DeviceMapper(DM);

/// A mapped device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name, that of its node in /dev/mapper.
    pub name: String,
    /// Its uuid; empty if it has none.
    pub uuid: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// How often it is open: by programs, mounts and other devices.
    pub open_count: u32,
    /// No I/O passes until it is resumed.
    pub suspended: bool,
    /// It has a table, so there is something to resume.
    pub has_table: bool,
}

/// One target of a table, or of a table's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How long it is, in sectors of 512 bytes.
    pub sectors: u64,
    /// `snapshot`.
    pub kind: String,
    /// Parameters or status, as the target writes them.
    pub text: String,
}

impl DeviceMapper {
    /// Opens device-mapper and asks for its version.
    ///
    /// # Errors
    /// `ENOENT`, `ENODEV` or `ENXIO` where there is none, `EACCES` or `EPERM` without privilege.
    pub fn open() -> io::Result<Self> {
        // The crate reports a failed open as text only.
        File::open(CONTROL)?;
        let dm = DM::new().map_err(errno)?;
        dm.version().map_err(errno)?;
        Ok(Self(dm))
    }

    /// The device of that uuid.
    ///
    /// # Errors
    /// What DM_DEV_STATUS said.
    pub fn find(&self, uuid: &str) -> io::Result<Option<Device>> {
        self.info(&DevId::Uuid(DmUuid::new(uuid).map_err(errno)?))
    }

    /// The device of that name.
    ///
    /// # Errors
    /// What DM_DEV_STATUS said.
    pub fn find_name(&self, name: &str) -> io::Result<Option<Device>> {
        self.info(&DevId::Name(DmName::new(name).map_err(errno)?))
    }

    fn info(&self, id: &DevId<'_>) -> io::Result<Option<Device>> {
        let info = match self.0.device_info(id).map_err(errno) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
            info => info?,
        };
        Ok(Some(device(&info)))
    }

    /// Names of all devices.
    ///
    /// # Errors
    /// What DM_LIST_DEVICES said.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let devices = self.0.list_devices().map_err(errno)?;
        Ok(devices.into_iter().map(|(name, ..)| text(name.as_bytes())).collect())
    }

    /// Makes a device, which has no table yet.
    ///
    /// # Errors
    /// `EBUSY` when the name or the uuid is taken.
    pub fn create(&self, name: &str, uuid: &str) -> io::Result<Device> {
        let name = DmName::new(name).map_err(errno)?;
        let uuid = DmUuid::new(uuid).map_err(errno)?;
        self.0.device_create(name, Some(uuid), DmOptions::default()).map_err(errno).map(|info| device(&info))
    }

    /// Loads a table of one target, which is in force from the next resume on.
    ///
    /// # Errors
    /// `EINVAL` when the kernel has no such target (see [`DeviceMapper::has_target`]) or the target refuses.
    pub fn load(&self, uuid: &str, target: &Target) -> io::Result<()> {
        let row = (0, target.sectors, target.kind.clone(), target.text.clone());
        self.by_uuid(uuid, |id| self.0.table_load(id, &[row], DmOptions::default())).map(drop)
    }

    /// Puts the loaded table in force, or lets I/O pass again.
    ///
    /// # Errors
    /// What DM_DEV_SUSPEND said.
    pub fn resume(&self, uuid: &str) -> io::Result<()> {
        // udev is to make the node, not to look into what is a guest's disk.
        self.by_uuid(uuid, |id| self.0.device_suspend(id, DmOptions::private())).map(drop)
    }

    /// Waits for the I/O under way and holds back what comes after.
    ///
    /// # Errors
    /// What DM_DEV_SUSPEND said.
    pub fn suspend(&self, uuid: &str) -> io::Result<()> {
        let options = DmOptions::private().set_flags(DmFlags::DM_SUSPEND);
        self.by_uuid(uuid, |id| self.0.device_suspend(id, options)).map(drop)
    }

    /// Removes the device. One that is open is tried five times in 0.8 s.
    ///
    /// # Errors
    /// `EBUSY` when it stays open, `ENXIO` when there is none.
    pub fn remove(&self, uuid: &str) -> io::Result<()> {
        self.by_uuid(uuid, |id| self.0.device_remove(id, DmOptions::default())).map(drop)
    }

    /// The table in force.
    ///
    /// # Errors
    /// `ENXIO` when there is no such device; what DM_TABLE_STATUS said.
    pub fn table(&self, uuid: &str) -> io::Result<Vec<Target>> {
        self.targets(uuid, DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE))
    }

    /// What the targets of the table in force say about themselves. The device is not flushed first.
    ///
    /// # Errors
    /// `ENXIO` when there is no such device; what DM_TABLE_STATUS said.
    pub fn status(&self, uuid: &str) -> io::Result<Vec<Target>> {
        self.targets(uuid, DmOptions::default().set_flags(DmFlags::DM_NOFLUSH))
    }

    fn targets(&self, uuid: &str, options: DmOptions) -> io::Result<Vec<Target>> {
        let (_, rows) = self.by_uuid(uuid, |id| self.0.table_status(id, options))?;
        Ok(rows.into_iter().map(|(_, sectors, kind, text)| Target { sectors, kind, text }).collect())
    }

    /// Whether the kernel has loaded this kind of target.
    ///
    /// # Errors
    /// What DM_LIST_VERSIONS said.
    pub fn has_target(&self, kind: &str) -> io::Result<bool> {
        Ok(self.0.list_versions().map_err(errno)?.iter().any(|(name, ..)| name == kind))
    }

    fn by_uuid<T>(&self, uuid: &str, call: impl FnOnce(&DevId<'_>) -> Result<T, DmError>) -> io::Result<T> {
        call(&DevId::Uuid(DmUuid::new(uuid).map_err(errno)?)).map_err(errno)
    }
}

fn device(info: &devicemapper::DeviceInfo) -> Device {
    let number = info.device();
    let flags = info.flags();
    Device {
        name: info.name().map(|name| text(name.as_bytes())).unwrap_or_default(),
        uuid: info.uuid().map(|uuid| text(uuid.as_bytes())).unwrap_or_default(),
        number: (number.major, number.minor),
        open_count: info.open_count().try_into().unwrap_or(0),
        suspended: flags.contains(DmFlags::DM_SUSPEND),
        has_table: flags.contains(DmFlags::DM_ACTIVE_PRESENT),
    }
}

/// The crate's names hold ASCII only.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn errno(error: DmError) -> io::Error {
    match error {
        DmError::Core(CoreError::Ioctl(.., errno)) => Errno::from_raw(*errno as i32).into(),
        other => io::Error::other(other.to_string()),
    }
}
