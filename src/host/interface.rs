//! Interfaces by their names, on Unix systems.

use std::ffi::CString;
use std::io;

/// The kernel's index of the interface `device`.
///
/// # Errors
///
/// The system's own when there is none of that name: ENODEV on Linux, ENXIO on Darwin.
pub fn index_of(device: &str) -> io::Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: the name is a string that ends with NUL and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The kernel's index of the interface `device`, if there is one of that name.
///
/// # Errors
///
/// The system's, when it cannot be asked: that says nothing about the interface.
pub fn find(device: &str) -> io::Result<Option<u32>> {
    match index_of(device) {
        Ok(index) => Ok(Some(index)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}
