//! What the control socket is called on Windows, where it is a named pipe, and whom it admits.

/// The pipe behind the control socket at `path`: a path of a pipe as it is, and any other with what a name may not have replaced. Windows knows no
/// difference of case in either.
pub(super) fn of(path: &str) -> String {
    const PIPES: &str = r"\\.\pipe\";
    if path.get(..PIPES.len()).is_some_and(|start| start.eq_ignore_ascii_case(PIPES)) {
        return path.to_owned();
    }
    let flat = |c: char| if matches!(c, '\\' | '/' | ':') { '-' } else { c.to_ascii_lowercase() };
    format!("{PIPES}ztun-{}", path.chars().map(flat).collect::<String>())
}

/// Who may connect, in the language of security descriptors: the system, administrators, and the user `sid` that the router runs as; nobody by
/// inheritance.
pub(super) fn descriptor(sid: &str) -> String {
    format!("D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;{sid})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_pipe_and_a_pipe_is_its_own() {
        assert_eq!(of(r"C:\ProgramData\ztun\ztun0.sock"), r"\\.\pipe\ztun-c--programdata-ztun-ztun0.sock");
        assert_eq!(of("C:/ProgramData/ztun/ZTUN0.sock"), of(r"c:\programdata\ztun\ztun0.sock"));
        assert_eq!(of(r"\\.\PIPE\mine"), r"\\.\PIPE\mine");
        assert_eq!(of("é"), r"\\.\pipe\ztun-é");
        assert_eq!(of(""), r"\\.\pipe\ztun-");
    }

    #[test]
    fn the_owner_and_administrators_are_admitted_and_nobody_else() {
        assert_eq!(
            descriptor("S-1-5-21-1-2-3-1001"),
            "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;S-1-5-21-1-2-3-1001)"
        );
    }
}
