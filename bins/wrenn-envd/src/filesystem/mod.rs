//! `filesystem.Filesystem`: names and metadata; the bytes of files go over `/files`.

pub mod entry;

use std::{fs, io, path::Path, sync::Arc};

use connectrpc::{ConnectError, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult};
use nix::errno::Errno;

use crate::{
    agent::Agent,
    http::auth,
    proto::filesystem::{
        EntryInfo, Filesystem, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
        MoveResponse, RemoveRequest, RemoveResponse, StatRequest, StatResponse,
    },
    users::User,
};

/// The most entries one `ListDir` gives, so that a deep tree does not fill the memory.
const ENTRIES: usize = 65_536;

/// The service. Its calls look at disks, so each runs on a thread that may wait.
pub struct Service(pub Arc<Agent>);

impl Service {
    fn user(&self, context: &RequestContext) -> Result<User, ConnectError> {
        let named = auth::basic_user(context.headers());
        self.0.user(named.as_deref()).map_err(|error| ConnectError::unauthenticated(error.to_string()))
    }
}

#[allow(refining_impl_trait)]
impl Filesystem for Service {
    async fn stat(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<StatResponse> {
        let path = self.user(&context)?.path(valid(request.path)?);
        let entry = blocking(move || entry::info(&path).map_err(|error| refusal(&path, &error))).await?;
        Response::ok(StatResponse { entry: entry.into(), ..Default::default() })
    }

    async fn make_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<MakeDirResponse> {
        let user = self.user(&context)?;
        let path = user.path(valid(request.path)?);
        let entry = blocking(move || {
            if fs::symlink_metadata(&path).is_ok() {
                return Err(ConnectError::already_exists(format!("{}: exists already", path.display())));
            }
            let made = entry::make_directories(&path, &user).and_then(|()| entry::info(&path));
            made.map_err(|error| refusal(&path, &error))
        });
        Response::ok(MakeDirResponse { entry: entry.await?.into(), ..Default::default() })
    }

    async fn r#move(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<MoveResponse> {
        let user = self.user(&context)?;
        let (from, to) = (user.path(valid(request.source)?), user.path(valid(request.destination)?));
        let entry = blocking(move || {
            if let Some(parent) = to.parent() {
                entry::make_directories(parent, &user).map_err(|error| refusal(parent, &error))?;
            }
            fs::rename(&from, &to).map_err(|error| refusal(&from, &error))?;
            entry::info(&to).map_err(|error| refusal(&to, &error))
        });
        Response::ok(MoveResponse { entry: entry.await?.into(), ..Default::default() })
    }

    async fn list_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<ListDirResponse> {
        let path = self.user(&context)?.path(valid(request.path)?);
        let depth = request.depth.max(1);
        let entries = blocking(move || {
            let mut entries = Vec::new();
            list(&path, depth, &mut entries).map_err(|error| refusal(&path, &error))?;
            Ok(entries)
        });
        Response::ok(ListDirResponse { entries: entries.await?, ..Default::default() })
    }

    async fn remove(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<RemoveResponse> {
        let path = self.user(&context)?.path(valid(request.path)?);
        blocking(move || entry::remove(&path).map_err(|error| refusal(&path, &error))).await?;
        Response::ok(RemoveResponse::default())
    }
}

/// Entries in the order of their names, each directory's own right after it. Links are not followed.
fn list(directory: &Path, depth: u32, entries: &mut Vec<EntryInfo>) -> io::Result<()> {
    let mut names = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable_by_key(fs::DirEntry::file_name);
    for found in names {
        let path = found.path();
        match entry::info(&path) {
            Ok(info) => entries.push(info),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed meanwhile
            Err(error) => return Err(error),
        }
        if entries.len() > ENTRIES {
            return Err(io::Error::from(Errno::E2BIG));
        }
        if depth > 1 && found.file_type()?.is_dir() {
            list(&path, depth - 1, entries)?;
        }
    }
    Ok(())
}

fn valid(path: &str) -> Result<&str, ConnectError> {
    if path.is_empty() || path.contains('\0') {
        return Err(ConnectError::invalid_argument("path is empty or holds a NUL byte"));
    }
    Ok(path)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ConnectError::internal(error.to_string()))?
}

fn refusal(path: &Path, error: &io::Error) -> ConnectError {
    let code = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => ErrorCode::NotFound,
        Some(Errno::EEXIST) => ErrorCode::AlreadyExists,
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => ErrorCode::PermissionDenied,
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::E2BIG) => ErrorCode::ResourceExhausted,
        Some(Errno::ENOTDIR | Errno::EISDIR | Errno::ENAMETOOLONG | Errno::ELOOP | Errno::EINVAL) => {
            ErrorCode::InvalidArgument
        }
        Some(Errno::ENOTEMPTY | Errno::EBUSY | Errno::EXDEV) => ErrorCode::FailedPrecondition,
        _ => ErrorCode::Internal,
    };
    ConnectError::new(code, format!("{}: {error}", path.display()))
}
