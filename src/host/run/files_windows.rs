//! Files that administrators and the system alone may write to, and locks on them, on Windows.
//!
//! Anybody may make a directory in `%ProgramData%`, and who has made it may write to it: one that does not belong to administrators or the system is
//! refused, and one that does gets the access that it has to have, whatever it had.
//!
//! A lock is a file that is opened so that nobody else can open it for writing as well; the system closes it when the process dies, and deletes it then.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
use windows_sys::Win32::Foundation::{
    ERROR_ALREADY_EXISTS, ERROR_SHARING_VIOLATION, GENERIC_READ, GENERIC_WRITE, HLOCAL, LocalFree,
};
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, GetNamedSecurityInfoW, SDDL_REVISION_1,
    SE_FILE_OBJECT, SetNamedSecurityInfoW,
};
use windows_sys::Win32::Security::{
    ACL, DACL_SECURITY_INFORMATION, GetSecurityDescriptorDacl, GetTokenInformation, IsWellKnownSid,
    OWNER_SECURITY_INFORMATION, PROTECTED_DACL_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR, PSID,
    SECURITY_ATTRIBUTES, TOKEN_ELEVATION, TOKEN_QUERY, TokenElevation, WinBuiltinAdministratorsSid,
    WinLocalSystemSid,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateDirectoryW, DELETE, FILE_FLAG_DELETE_ON_CLOSE, FILE_SHARE_DELETE, FILE_SHARE_READ,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

/// The owner is the administrators; they and the system may do anything, and nobody else, in it and in what is made in it.
const ACCESS: &str = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)";

/// Where they are kept: `ztun` in `%ProgramData%`.
pub(super) fn standard_dir() -> PathBuf {
    let data =
        std::env::var_os("ProgramData").map_or_else(|| PathBuf::from(r"C:\ProgramData"), PathBuf::from);
    data.join("ztun")
}

/// What came of trying to take a lock.
#[derive(Debug)]
pub(super) enum Attempt {
    /// It was taken, and lasts as long as the file is open.
    Taken(File),
    /// A process has it, and has written this.
    Held(String),
    /// The one that had it has just deleted its file, or the directory: try again.
    Vanished,
}

fn wide(path: &Path) -> Vec<u16> {
    path.as_os_str().encode_wide().chain([0]).collect()
}

/// A security descriptor that the system has allocated.
struct Descriptor(PSECURITY_DESCRIPTOR);

impl Descriptor {
    /// [`ACCESS`].
    fn wanted() -> io::Result<Descriptor> {
        let text: Vec<u16> = ACCESS.encode_utf16().chain([0]).collect();
        let mut descriptor = core::ptr::null_mut();
        // SAFETY: a text that ends with 0, a pointer to write to, and null for a size that is not asked for.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                core::ptr::null_mut(),
            )
        };
        if made == 0 { Err(io::Error::last_os_error()) } else { Ok(Descriptor(descriptor)) }
    }

    /// Its list of who may do what.
    fn access(&self) -> io::Result<*const ACL> {
        let (mut present, mut list, mut default) = (0, core::ptr::null_mut(), 0);
        // SAFETY: a descriptor, and places to write to.
        let found =
            unsafe { GetSecurityDescriptorDacl(self.0, &raw mut present, &raw mut list, &raw mut default) };
        if found == 0 { Err(io::Error::last_os_error()) } else { Ok(list) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the system has allocated it so, and nobody else has it.
        unsafe { LocalFree(self.0 as HLOCAL) };
    }
}

/// Whether this process has the rights of an administrator: has been elevated, as the system calls it.
fn is_elevated() -> io::Result<bool> {
    let mut token = core::ptr::null_mut();
    // SAFETY: the process's own handle needs no closing, and there is a handle to write to.
    if unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was just made, and nobody else has it.
    let token = unsafe { OwnedHandle::from_raw_handle(token) };
    let (mut elevation, mut size) = (TOKEN_ELEVATION::default(), 0);
    let room = u32::try_from(size_of::<TOKEN_ELEVATION>()).map_err(io::Error::other)?;
    let answer = (&raw mut elevation).cast();
    // SAFETY: an open token, and as many octets to write to as the size says.
    let asked =
        unsafe { GetTokenInformation(token.as_raw_handle(), TokenElevation, answer, room, &raw mut size) };
    if asked == 0 { Err(io::Error::last_os_error()) } else { Ok(elevation.TokenIsElevated != 0) }
}

/// Makes sure that there is a directory that only administrators and the system can write to.
///
/// # Errors
///
/// `PermissionDenied`: this process is no administrator's, or the directory is somebody else's.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    if !is_elevated()? {
        let text = "this needs the rights of an administrator";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let (name, wanted) = (wide(path), Descriptor::wanted()?);
    let size = u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).map_err(io::Error::other)?;
    let attributes = SECURITY_ATTRIBUTES { nLength: size, lpSecurityDescriptor: wanted.0, bInheritHandle: 0 };
    // SAFETY: a text that ends with 0, and attributes whose descriptor lives until the call returns.
    if unsafe { CreateDirectoryW(name.as_ptr(), &raw const attributes) } != 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(ERROR_ALREADY_EXISTS.cast_signed()) {
        return Err(error);
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() || !is_of_administrators(&name)? {
        let text = format!("{} must be a directory of administrators or the system", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let what = DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;
    let (null, access) = (core::ptr::null_mut(), wanted.access()?);
    // SAFETY: a text that ends with 0, a list that lives until the call returns, and nulls for what is not set.
    let code = unsafe {
        SetNamedSecurityInfoW(name.as_ptr(), SE_FILE_OBJECT, what, null, null, access, core::ptr::null())
    };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.cast_signed())) }
}

/// Whether the file belongs to administrators or to the system.
fn is_of_administrators(name: &[u16]) -> io::Result<bool> {
    let (mut owner, mut descriptor): (PSID, PSECURITY_DESCRIPTOR) =
        (core::ptr::null_mut(), core::ptr::null_mut());
    let null = core::ptr::null_mut();
    // SAFETY: a text that ends with 0, places to write to, and nulls for what is not asked for.
    let code = unsafe {
        GetNamedSecurityInfoW(
            name.as_ptr(),
            SE_FILE_OBJECT,
            OWNER_SECURITY_INFORMATION,
            &raw mut owner,
            null,
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            &raw mut descriptor,
        )
    };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code.cast_signed()));
    }
    let _held = Descriptor(descriptor);
    // SAFETY: the owner lies in the descriptor, which is held.
    let is = |known| unsafe { IsWellKnownSid(owner, known) } != 0;
    Ok(is(WinBuiltinAdministratorsSid) || is(WinLocalSystemSid))
}

/// How a file is opened: what it inherits from the directory keeps others out.
pub(super) fn private() -> OpenOptions {
    OpenOptions::new()
}

/// Takes the lock of the file `path`, which is made when it is not there.
pub(super) fn try_lock(path: &Path) -> io::Result<Attempt> {
    let opened = OpenOptions::new()
        .access_mode(GENERIC_READ | GENERIC_WRITE | DELETE)
        // Others may read it, and delete it when they find that nobody has it.
        .share_mode(FILE_SHARE_READ | FILE_SHARE_DELETE)
        .custom_flags(FILE_FLAG_DELETE_ON_CLOSE)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    match opened {
        Ok(file) => Ok(Attempt::Taken(file)),
        Err(error) if error.raw_os_error() == Some(ERROR_SHARING_VIOLATION.cast_signed()) => {
            match fs::read_to_string(path) {
                Ok(text) => Ok(Attempt::Held(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Attempt::Vanished),
                Err(error) => Err(error),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Attempt::Vanished),
        Err(error) => Err(error),
    }
}

/// Nothing: the names in a directory are as durable as its files' contents, which are synced.
pub(super) fn sync_parent(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_lock_is_had_by_one_who_can_be_read_and_goes_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.lock");
        let Attempt::Taken(mut first) = try_lock(&path).unwrap() else { panic!("nobody had it") };
        first.write_all(b"12 34\n").unwrap();
        let held = try_lock(&path).unwrap();
        assert!(matches!(&held, Attempt::Held(text) if text == "12 34\n"), "{held:?}");
        drop(first);
        assert!(!path.exists());
        assert!(matches!(try_lock(&path).unwrap(), Attempt::Taken(_)));
        let nowhere = try_lock(&dir.path().join("none").join("x.lock")).unwrap();
        assert!(matches!(nowhere, Attempt::Vanished), "{nowhere:?}");
    }

    /// Under wine files belong to the user.
    #[test]
    fn on_windows_a_directory_of_administrators_is_made_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        create_private(&own).unwrap();
        create_private(&own).unwrap();
        assert!(is_of_administrators(&wide(&own)).unwrap());
    }
}
