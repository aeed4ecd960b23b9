//! Named pipes of Windows, as far as no crate makes them: with a security descriptor, and for clients that wait.

use mio::windows::NamedPipe;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, IntoRawHandle, OwnedHandle};
use windows_sys::Win32::Foundation::{ERROR_PIPE_BUSY, HANDLE, INVALID_HANDLE_VALUE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX, SECURITY_IDENTIFICATION,
};
use windows_sys::Win32::System::Pipes::{
    CreateNamedPipeW, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_BYTE, PIPE_UNLIMITED_INSTANCES, WaitNamedPipeW,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

/// Octets that wait in each direction.
const BUFFER: u32 = 64 << 10;
/// Milliseconds that a client waits for an instance that nobody is connected to.
const PATIENCE: u32 = 5_000;

/// One more instance of the pipe `name`, for whom the descriptor `sddl` admits, on this machine only. The first one is refused where somebody has the name.
///
/// # Errors
///
/// The system's; [`io::ErrorKind::PermissionDenied`] when the first is not the first.
pub fn create(name: &str, sddl: &str, first: bool) -> io::Result<NamedPipe> {
    let (name, sddl) = (wide(name), wide(sddl));
    let mut descriptor: PSECURITY_DESCRIPTOR = std::ptr::null_mut();
    // SAFETY: the text ends with a zero, and the pointer is to a live pointer.
    let made = unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            sddl.as_ptr(),
            SDDL_REVISION_1,
            &raw mut descriptor,
            std::ptr::null_mut(),
        )
    };
    if made == 0 {
        return Err(io::Error::last_os_error());
    }
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: descriptor,
        bInheritHandle: 0,
    };
    let only = if first { FILE_FLAG_FIRST_PIPE_INSTANCE } else { 0 };
    // SAFETY: the name ends with a zero; the attributes and the descriptor that they lead to outlive the call.
    let handle = unsafe {
        CreateNamedPipeW(
            name.as_ptr(),
            PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | only,
            PIPE_TYPE_BYTE | PIPE_REJECT_REMOTE_CLIENTS,
            PIPE_UNLIMITED_INSTANCES,
            BUFFER,
            BUFFER,
            0,
            &raw const attributes,
        )
    };
    let result = match handle == INVALID_HANDLE_VALUE {
        true => Err(io::Error::last_os_error()),
        // SAFETY: the handle was just made for overlapped calls, and nobody else has it.
        false => Ok(unsafe { NamedPipe::from_raw_handle(handle) }),
    };
    // SAFETY: the descriptor was allocated by the call above and is not used any more.
    unsafe { LocalFree(descriptor) };
    result
}

/// Connects to the pipe `name`. Whoever serves it is told who asks, and cannot act in that name.
///
/// # Errors
///
/// The system's: nobody has that pipe, or this user may not.
pub fn open(name: &str) -> io::Result<NamedPipe> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(FILE_FLAG_OVERLAPPED).security_qos_flags(SECURITY_IDENTIFICATION);
    let busy = |error: &io::Error| error.raw_os_error() == Some(ERROR_PIPE_BUSY.cast_signed());
    let file = match options.open(name) {
        Err(error) if busy(&error) => {
            // Between one client and the next there is no instance for a moment.
            // SAFETY: the name ends with a zero.
            unsafe { WaitNamedPipeW(wide(name).as_ptr(), PATIENCE) };
            options.open(name)?
        }
        opened => opened?,
    };
    // SAFETY: the handle was opened for overlapped calls, and is given away here.
    Ok(unsafe { NamedPipe::from_raw_handle(file.into_raw_handle()) })
}

/// The user that this process runs as, in the form of security descriptors: `S-1-5-21-...`.
///
/// # Errors
///
/// The system's.
pub fn own_user() -> io::Result<String> {
    let mut token: HANDLE = std::ptr::null_mut();
    // SAFETY: the first is a pseudo-handle, the last a live pointer.
    if unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was just opened, and nobody else has it.
    let token = unsafe { OwnedHandle::from_raw_handle(token) };
    // A TOKEN_USER and the longest SID behind it (68 octets), aligned as pointers are.
    let mut buffer = [0_u64; 16];
    let mut written = 0;
    // SAFETY: the buffer is live, writable, and as long as is told.
    let told = unsafe {
        GetTokenInformation(
            token.as_raw_handle(),
            TokenUser,
            buffer.as_mut_ptr().cast(),
            size_of_val(&buffer) as u32,
            &raw mut written,
        )
    };
    if told == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has put a TOKEN_USER at the front, whose SID stands in the buffer too.
    let user = unsafe { (*buffer.as_ptr().cast::<TOKEN_USER>()).User.Sid };
    let mut text: *mut u16 = std::ptr::null_mut();
    // SAFETY: the SID is valid as long as the buffer is, and the pointer is to a live pointer.
    if unsafe { ConvertSidToStringSidW(user, &raw mut text) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the text that was allocated ends with a zero, which is looked for before anything behind it is read.
    let units: Vec<u16> = unsafe { (0..).map(|at| *text.add(at)).take_while(|unit| *unit != 0).collect() };
    // SAFETY: the text was allocated by the call above and is not used any more.
    unsafe { LocalFree(text.cast()) };
    Ok(String::from_utf16_lossy(&units))
}

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain(Some(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_as_somebody() {
        let user = own_user().unwrap();
        assert!(user.starts_with("S-1-5-"), "{user}");
    }

    /// Wine 8.0 lets everybody be the first.
    #[test]
    fn on_windows_a_name_that_somebody_has_is_refused_to_the_next_first() {
        let name = format!(r"\\.\pipe\ztun-test-{}", std::process::id());
        let sddl = "D:P(A;;GA;;;SY)(A;;GA;;;BA)";
        let _first = create(&name, sddl, true).unwrap();
        assert_eq!(create(&name, sddl, true).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_pipe_has_many_instances_and_a_descriptor() {
        let name = format!(r"\\.\pipe\ztun-test-more-{}", std::process::id());
        let _first = create(&name, "D:P(A;;GA;;;SY)(A;;GA;;;BA)", true).unwrap();
        let _second = create(&name, "D:P(A;;GA;;;SY)(A;;GA;;;BA)", false).unwrap();
        assert!(create(&name, "no descriptor", false).is_err());
        assert_eq!(open(r"\\.\pipe\ztun-nobody").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
