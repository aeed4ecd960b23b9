//! Whether this program lies where only administrators can put something else in its place: reads the descriptors that [`trust`](super::trust) judges.

use super::trust::{Place, who_can_change};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use windows_sys::Win32::Foundation::LocalFree;
use windows_sys::Win32::Security::Authorization::{
    ConvertSecurityDescriptorToStringSecurityDescriptorW, GetNamedSecurityInfoW, SDDL_REVISION_1,
    SE_FILE_OBJECT,
};
use windows_sys::Win32::Security::{
    DACL_SECURITY_INFORMATION, OWNER_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR,
};

const ASKED: u32 = OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION;

/// Something that the system has allocated.
struct Local(*mut core::ffi::c_void);

impl Drop for Local {
    fn drop(&mut self) {
        // SAFETY: the system has allocated it so, and nobody else has it.
        unsafe { LocalFree(self.0) };
    }
}

/// The owner of a file and its list of access, in the language of security descriptors.
fn descriptor(path: &Path) -> io::Result<String> {
    let name: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let null = core::ptr::null_mut();
    let mut found: PSECURITY_DESCRIPTOR = null;
    // SAFETY: a text that ends with 0, a place to write to, and nulls for what is not asked for apart.
    let code = unsafe {
        GetNamedSecurityInfoW(
            name.as_ptr(),
            SE_FILE_OBJECT,
            ASKED,
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            &raw mut found,
        )
    };
    super::helper::check(code)?;
    let found = Local(found);
    let (mut text, mut length) = (core::ptr::null_mut(), 0);
    // SAFETY: a descriptor, and places to write to.
    let written = unsafe {
        ConvertSecurityDescriptorToStringSecurityDescriptorW(
            found.0,
            SDDL_REVISION_1,
            ASKED,
            &raw mut text,
            &raw mut length,
        )
    };
    if written == 0 {
        return Err(io::Error::last_os_error());
    }
    let held = Local(text.cast());
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: as many units as it says are held.
    let units = unsafe { core::slice::from_raw_parts(held.0.cast::<u16>(), length) };
    Ok(String::from_utf16_lossy(units).trim_end_matches('\0').to_owned())
}

/// The first of the places on the way to `program`, from itself up, where somebody but administrators and the system could put something in its place, and
/// who (a SID, or two letters of SDDL for a known one); `None` when there is none. The library beside it counts like itself.
///
/// # Errors
///
/// The system does not tell.
pub fn program_is_open_to(program: &Path) -> io::Result<Option<(PathBuf, String)>> {
    let library = program.with_file_name("wintun.dll");
    let files = core::iter::once(program).chain(Some(library.as_path()).filter(|path| path.exists()));
    let mut directories = program.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
    let own = directories.next();
    let places = files.map(|path| (Place::File, path));
    let places = places.chain(own.map(|path| (Place::Directory, path)));
    for (place, path) in places.chain(directories.map(|path| (Place::Above, path))) {
        if let Some(who) = who_can_change(place, &descriptor(path)?) {
            return Ok(Some((path.to_owned(), who)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_read_with_its_owner_and_its_list() {
        let text = descriptor(&std::env::current_exe().unwrap()).unwrap();
        assert!(text.starts_with("O:") && text.contains("D:"), "{text}");
    }

    /// Under wine files have no such owners.
    #[test]
    fn on_windows_a_program_of_the_system_is_closed_and_one_in_a_users_directory_is_open() {
        let system = Path::new(r"C:\Windows\System32\notepad.exe");
        assert_eq!(program_is_open_to(system).unwrap(), None);
        let public = Path::new(r"C:\Users\Public\ztun-test-open.exe");
        std::fs::write(public, b"").unwrap();
        let found = program_is_open_to(public);
        std::fs::remove_file(public).unwrap();
        assert!(found.unwrap().is_some());
    }
}
