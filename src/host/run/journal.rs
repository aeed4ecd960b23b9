//! What a run has to undo, on disk before it is done.
//!
//! `/run/ztun/ztun0.journal` (see [`lock`](super::lock) for the directory) has a first line that names the format and the device's interface index, then the
//! undo of every change in the order of the changes, one line each. A line counts when its newline is there: a torn one was never synced, so its change
//! was never made. A journal that is written anew takes its name in one step (rename): there is the old one or the new one.

use super::files;
use super::lock::RunDir;
use super::{Journal, Pending};
use crate::host::reversible::Reversible;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const FORMAT: &str = "ztun-journal 1";

/// The journal of one device.
#[derive(Debug)]
pub(in crate::host) struct FileJournal {
    path: PathBuf,
    /// Where a new journal is written before it takes the name of the old one.
    draft: PathBuf,
    file: Option<File>,
}

impl FileJournal {
    /// The journal of the device `name`. The caller has its lock.
    pub(in crate::host) fn new(dir: &RunDir, name: &str) -> FileJournal {
        FileJournal { path: dir.file(name, "journal"), draft: dir.file(name, "draft"), file: None }
    }

    /// Makes the journal say `text`: this file is it from then on. On an error it is as before.
    fn rewrite(&mut self, text: &str) -> io::Result<()> {
        let mut file =
            files::private().read(true).write(true).create(true).truncate(true).open(&self.draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        // Not every system renames onto a file that is open.
        let old = self.file.take().is_some();
        if let Err(error) = fs::rename(&self.draft, &self.path) {
            if old {
                self.file = files::private().read(true).write(true).open(&self.path).ok();
            }
            return Err(error);
        }
        files::sync_parent(&self.path)?;
        self.file = Some(file);
        Ok(())
    }
}

impl<C: Reversible> Journal<C> for FileJournal {
    fn pending(&mut self) -> io::Result<Pending<C>> {
        let mut octets = Vec::new();
        match files::private().read(true).open(&self.path) {
            Ok(mut file) => file.read_to_end(&mut octets)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pending::default()),
            Err(error) => return Err(error),
        };
        Ok(read(&String::from_utf8_lossy(&octets)))
    }

    fn begin(&mut self, index: u32, undos: &[C]) -> io::Result<()> {
        let mut text = format!("{FORMAT} index {index}\n");
        for undo in undos {
            text.push_str(&format!("{undo}\n"));
        }
        self.rewrite(&text).inspect_err(|_| {
            if let Err(error) = remove(&self.draft) {
                log::debug!("{} stays: {error}", self.draft.display());
            }
        })
    }

    fn record(&mut self, undo: &C) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the journal was not begun"));
        };
        let end = file.seek(SeekFrom::End(0))?;
        let written = file.write_all(format!("{undo}\n").as_bytes()).and_then(|()| file.sync_data());
        if written.is_err() {
            // A torn line in the middle would spoil the one after it.
            file.set_len(end)?;
        }
        written
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file = None;
        let removed = remove(&self.path)?;
        if remove(&self.draft)? || removed { files::sync_parent(&self.path) } else { Ok(()) }
    }
}

/// Deletes a file; false when there was none.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

pub(in crate::host) fn read<C: Reversible>(text: &str) -> Pending<C> {
    let mut pending = Pending::default();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let Some(line) = line.strip_suffix('\n') else { continue };
        if number == 0
            && let Some(index) = line.strip_prefix(FORMAT).and_then(|rest| rest.strip_prefix(" index "))
            && let Ok(index) = index.parse()
        {
            pending.index = Some(index);
            continue;
        }
        match line.parse() {
            Ok(undo) => pending.undos.push(undo),
            Err(_) => pending.unreadable += 1,
        }
    }
    pending.undos.reverse();
    pending
}

#[cfg(test)]
mod tests {
    use super::super::lock::Lock;
    use super::*;
    // Of the vocabularies, one that is compiled for tests on every system.
    use crate::host::windows::change::Change;
    use crate::host::windows::change::tests::change;
    use proptest::prelude::*;

    fn dir() -> (tempfile::TempDir, RunDir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = RunDir::at(temporary.path().join("run"));
        (temporary, dir)
    }

    fn up() -> Change {
        "route add 0.0.0.0/1 dev ztun0".parse().unwrap()
    }

    #[test]
    fn undos_come_back_the_latest_first_also_to_another_process() {
        let (_temporary, dir) = dir();
        let _lock = Lock::device(&dir, "ztun0").unwrap();
        let mut journal = FileJournal::new(&dir, "ztun0");
        let nothing = Pending::<Change>::default();
        assert_eq!(journal.pending().unwrap(), nothing);
        journal.begin(7, &[] as &[Change]).unwrap();
        journal.record(&up().undo()).unwrap();
        journal.record(&up()).unwrap();
        let pending = FileJournal::new(&dir, "ztun0").pending().unwrap();
        assert_eq!(pending, Pending { index: Some(7), undos: vec![up(), up().undo()], unreadable: 0 });
        journal.begin(8, &[up()]).unwrap();
        journal.record(&up().undo()).unwrap();
        let pending = FileJournal::new(&dir, "ztun0").pending().unwrap();
        assert_eq!(pending, Pending { index: Some(8), undos: vec![up().undo(), up()], unreadable: 0 });
        Journal::<Change>::clear(&mut journal).unwrap();
        Journal::<Change>::clear(&mut journal).unwrap();
        assert_eq!(journal.pending().unwrap(), nothing);
    }

    #[test]
    fn a_record_without_a_beginning_is_refused() {
        let (_temporary, dir) = dir();
        assert!(FileJournal::new(&dir, "ztun0").record(&up()).is_err());
    }

    #[test]
    fn a_torn_last_line_is_not_an_undo_and_rubbish_is_counted() {
        assert_eq!(read::<Change>("ztun-journal 1 index 7\nroute add 0.0.0.0/1 dev ztun0").undos, []);
        let pending = read("ztun-journal 1 index x\n\0\u{fffd}\nroute add 0.0.0.0/1 dev ztun0\n");
        assert_eq!(pending, Pending { index: None, undos: vec![up()], unreadable: 2 });
        assert_eq!(read::<Change>(""), Pending::default());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_whole_lines_survive_a_tear(
            changes in proptest::collection::vec(change(), 0..8),
            rubbish: String,
            cut in any::<proptest::sample::Index>(),
        ) {
            read::<Change>(&rubbish);
            let text: String = changes.iter().map(|change| format!("{change}\n")).collect();
            let text = format!("{FORMAT} index 3\n{text}");
            let torn = &text[..cut.index(text.len() + 1)];
            let whole = torn.matches('\n').count().saturating_sub(1);
            let mut expected = changes[..whole].to_vec();
            expected.reverse();
            prop_assert_eq!(read::<Change>(torn).undos, expected);
        }
    }
}
