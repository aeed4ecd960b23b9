//! Keys and values of the registry.

use super::helper::{check, error};
use super::nrpt::Value;
use super::octets::wide;
use std::io;
use windows_sys::Win32::Foundation::{ERROR_FILE_NOT_FOUND, ERROR_MORE_DATA};
use windows_sys::Win32::System::Registry::{
    HKEY, KEY_QUERY_VALUE, KEY_SET_VALUE, REG_OPTION_NON_VOLATILE, REG_OPTION_VOLATILE, RRF_RT_ANY,
    RegCloseKey, RegCreateKeyExW, RegDeleteTreeW, RegGetValueW, RegOpenKeyExW, RegSetValueExW,
};

/// An open key.
struct Key(HKEY);

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: the key is open, and nobody else has it.
        let code = unsafe { RegCloseKey(self.0) };
        if code != 0 {
            log::debug!("RegCloseKey: {}", error(code));
        }
    }
}

/// How long a key that is made stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// Until it is deleted.
    Kept,
    /// Until the machine goes down. The key that it lies in has to be there, or is as short-lived.
    Volatile,
}

/// Writes `values` to the key `path` below `root`, which is made when it is not there.
pub(super) fn write(root: HKEY, path: &str, life: Life, values: &[Value]) -> io::Result<()> {
    let options = match life {
        Life::Kept => REG_OPTION_NON_VOLATILE,
        Life::Volatile => REG_OPTION_VOLATILE,
    };
    let (path, mut key) = (wide(path), core::ptr::null_mut());
    let (null, access) = (core::ptr::null(), KEY_SET_VALUE);
    // SAFETY: a text that ends with 0, the nulls that the call allows, and a key to write to.
    check(unsafe {
        RegCreateKeyExW(
            root,
            path.as_ptr(),
            0,
            null,
            options,
            access,
            core::ptr::null(),
            &raw mut key,
            core::ptr::null_mut(),
        )
    })?;
    let key = Key(key);
    for value in values {
        let name = wide(value.name);
        let size = u32::try_from(value.data.len()).map_err(io::Error::other)?;
        // SAFETY: a text that ends with 0, and as many octets as the size says.
        check(unsafe { RegSetValueExW(key.0, name.as_ptr(), 0, value.kind, value.data.as_ptr(), size) })?;
    }
    Ok(())
}

/// The octets of a value; `None` when it, or its key, is not there.
pub(super) fn read(root: HKEY, path: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (wide(path), wide(name));
    let mut data = vec![0_u8; 1024];
    loop {
        let mut size = u32::try_from(data.len()).map_err(io::Error::other)?;
        // SAFETY: texts that end with 0, and as many octets to write to as the size says.
        let code = unsafe {
            RegGetValueW(
                root,
                path.as_ptr(),
                name.as_ptr(),
                RRF_RT_ANY,
                core::ptr::null_mut(),
                data.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        match code {
            ERROR_FILE_NOT_FOUND => return Ok(None),
            ERROR_MORE_DATA => {
                let wanted = usize::try_from(size).unwrap_or(0);
                data.resize(wanted.max(data.len()).saturating_mul(2), 0);
            }
            code => {
                check(code)?;
                data.truncate(usize::try_from(size).unwrap_or(0));
                return Ok(Some(data));
            }
        }
    }
}

/// Whether a key is there.
pub(super) fn is_there(root: HKEY, path: &str) -> io::Result<bool> {
    let (path, mut key) = (wide(path), core::ptr::null_mut());
    // SAFETY: a text that ends with 0, and a key to write to.
    match unsafe { RegOpenKeyExW(root, path.as_ptr(), 0, KEY_QUERY_VALUE, &raw mut key) } {
        ERROR_FILE_NOT_FOUND => Ok(false),
        code => {
            check(code)?;
            drop(Key(key));
            Ok(true)
        }
    }
}

/// Deletes a key with its values; false when it was not there.
pub(super) fn delete(root: HKEY, path: &str) -> io::Result<bool> {
    let path = wide(path);
    // SAFETY: a text that ends with 0.
    match unsafe { RegDeleteTreeW(root, path.as_ptr()) } {
        ERROR_FILE_NOT_FOUND => Ok(false),
        code => check(code).map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::super::nrpt;
    use super::*;
    use windows_sys::Win32::System::Registry::HKEY_CURRENT_USER;

    #[test]
    fn a_rule_is_written_read_and_deleted() {
        let path = format!(r"Software\ztun test {}", std::process::id());
        let servers = ["198.18.0.2", "fd7a::2"].map(|server| server.parse().unwrap());
        assert_eq!(read(HKEY_CURRENT_USER, &path, nrpt::SERVERS).unwrap(), None);
        write(HKEY_CURRENT_USER, &path, Life::Volatile, &nrpt::rule(&servers)).unwrap();
        let data = read(HKEY_CURRENT_USER, &path, nrpt::SERVERS).unwrap().unwrap();
        assert_eq!(nrpt::servers_in(&data), servers);
        let name = read(HKEY_CURRENT_USER, &path, "Name").unwrap().unwrap();
        assert_eq!(name, [0x2e, 0, 0, 0, 0, 0]);
        assert!(is_there(HKEY_CURRENT_USER, &path).unwrap());
        assert!(delete(HKEY_CURRENT_USER, &path).unwrap());
        assert!(!is_there(HKEY_CURRENT_USER, &path).unwrap());
        assert!(!delete(HKEY_CURRENT_USER, &path).unwrap());
    }

    #[test]
    fn a_long_value_is_read_whole() {
        let path = format!(r"Software\ztun test long {}", std::process::id());
        let value = Value { name: "long", kind: 3, data: vec![7; 5000] };
        write(HKEY_CURRENT_USER, &path, Life::Kept, core::slice::from_ref(&value)).unwrap();
        assert_eq!(read(HKEY_CURRENT_USER, &path, "long").unwrap(), Some(value.data));
        assert!(delete(HKEY_CURRENT_USER, &path).unwrap());
    }
}
