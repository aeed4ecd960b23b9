//! wintun.dll: where it is looked for, and why it is believed.
//!
//! The library makes adapters by a driver that it carries along, so whoever puts another in its place has the machine. It is loaded from the directory of this
//! program by its whole path, never by the search path, where the current directory or PATH could supply one; and only when Windows finds its signature good, as
//! it has to be for the driver too. The file cannot be replaced while it is loaded, so it is looked at once.

use super::OpenError;
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Security::WinTrust::{
    WINTRUST_ACTION_GENERIC_VERIFY_V2, WINTRUST_DATA, WINTRUST_DATA_0, WINTRUST_FILE_INFO,
    WTD_CACHE_ONLY_URL_RETRIEVAL, WTD_CHOICE_FILE, WTD_REVOKE_NONE, WTD_STATEACTION_CLOSE,
    WTD_STATEACTION_VERIFY, WTD_UI_NONE, WinVerifyTrust,
};
use wintun::Wintun;

const NAME: &str = "wintun.dll";

/// The library of this process.
static LOADED: OnceLock<Wintun> = OnceLock::new();

/// The library from beside the program; loaded once.
pub(super) fn get() -> Result<Wintun, OpenError> {
    if let Some(loaded) = LOADED.get() {
        return Ok(Wintun::clone(loaded));
    }
    let path = beside_the_program().map_err(|source| refused("cannot tell where this program is", source))?;
    let loaded = load(&path)?;
    Ok(Wintun::clone(LOADED.get_or_init(|| loaded)))
}

fn beside_the_program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(NAME))
}

fn load(path: &Path) -> Result<Wintun, OpenError> {
    let shown = path.display();
    if let Err(error) = path.metadata() {
        return Err(refused(&format!("there is no {shown}"), error));
    }
    verify(path).map_err(|error| refused(&format!("the signature of {shown} is not good"), error))?;
    // SAFETY: what runs when the file is loaded, and behind the names that are looked up in it, is Wintun's: its signature was just found good.
    unsafe { wintun::load_from_path(path) }
        .map_err(|error| refused(&format!("cannot load {shown}"), error.into()))
}

fn refused(what: &str, source: io::Error) -> OpenError {
    OpenError {
        what: format!("no Wintun, which makes the device: {what}"),
        source,
        remedy:
            "download Wintun from https://www.wintun.net and put bin\\amd64\\wintun.dll of it beside ztun.exe"
                .into(),
    }
}

/// Has Windows judge the signature of a file, without asking anybody: no window, no network.
fn verify(path: &Path) -> io::Result<()> {
    let wide: Vec<u16> = path.as_os_str().encode_wide().chain(Some(0)).collect();
    let mut file = WINTRUST_FILE_INFO {
        cbStruct: size_of::<WINTRUST_FILE_INFO>() as u32,
        pcwszFilePath: wide.as_ptr(),
        ..WINTRUST_FILE_INFO::default()
    };
    let mut data = WINTRUST_DATA {
        cbStruct: size_of::<WINTRUST_DATA>() as u32,
        dwUIChoice: WTD_UI_NONE,
        fdwRevocationChecks: WTD_REVOKE_NONE,
        dwUnionChoice: WTD_CHOICE_FILE,
        Anonymous: WINTRUST_DATA_0 { pFile: &raw mut file },
        dwStateAction: WTD_STATEACTION_VERIFY,
        dwProvFlags: WTD_CACHE_ONLY_URL_RETRIEVAL,
        ..WINTRUST_DATA::default()
    };
    let mut action = WINTRUST_ACTION_GENERIC_VERIFY_V2;
    let mut judge = |data: &mut WINTRUST_DATA| {
        // SAFETY: all three structures, and the path that one leads to, outlive the call, and say their sizes; no window is named.
        unsafe { WinVerifyTrust(INVALID_HANDLE_VALUE, &raw mut action, (&raw mut *data).cast()) }
    };
    let status = judge(&mut data);
    // What the first call has opened.
    data.dwStateAction = WTD_STATEACTION_CLOSE;
    judge(&mut data);
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_or_not_signed_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let missing = load(&path).map(drop).unwrap_err();
        assert!(missing.what.contains("there is no"), "{missing}");
        std::fs::write(&path, b"MZ and no more").unwrap();
        let unsigned = load(&path).map(drop).unwrap_err();
        assert!(unsigned.what.contains("signature"), "{unsigned}");
        for refused in [missing, unsigned] {
            assert!(refused.remedy.contains("wintun.net") && refused.remedy.contains("ztun.exe"));
        }
    }

    #[test]
    fn it_is_looked_for_beside_the_program_and_nowhere_else() {
        let path = beside_the_program().unwrap();
        assert!(path.is_absolute() && path.ends_with(NAME));
        assert_eq!(path.parent(), std::env::current_exe().unwrap().parent());
    }
}
