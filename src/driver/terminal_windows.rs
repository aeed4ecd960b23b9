//! The console of a program that repaints it: keys one by one, and everything as it was at the end.

use super::Signals;
use crate::time::Duration;
use std::io;
use std::os::windows::io::AsRawHandle;
use windows_sys::Win32::Foundation::{HANDLE, WAIT_FAILED, WAIT_OBJECT_0};
use windows_sys::Win32::System::Console::{
    CONSOLE_MODE, CONSOLE_SCREEN_BUFFER_INFO, ENABLE_ECHO_INPUT, ENABLE_LINE_INPUT, ENABLE_PROCESSED_INPUT,
    ENABLE_VIRTUAL_TERMINAL_PROCESSING, GetConsoleMode, GetConsoleScreenBufferInfo, INPUT_RECORD, KEY_EVENT,
    ReadConsoleInputW, SetConsoleMode,
};
use windows_sys::Win32::System::Threading::WaitForSingleObject;

/// How long a signal may wait to be seen: no handle tells of it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// A key, as the octet that it sends.
    Key(u8),
    /// A signal that asks to stop.
    Signal,
    /// The time is over.
    Timeout,
}

/// The console as a source of keys, with orders understood on its screen. What was set is set back when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    signals: Signals,
    /// Whether standard input is a console.
    keys: bool,
    /// Kept for their ends.
    _modes: [Option<Mode>; 2],
}

impl Terminal {
    /// Takes over keys and signals. Without a console on standard input there are no keys.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn open() -> io::Result<Terminal> {
        let signals = Signals::new()?;
        // Ctrl-C is a key then, as on other systems.
        let whole = ENABLE_LINE_INPUT | ENABLE_ECHO_INPUT | ENABLE_PROCESSED_INPUT;
        let keys = Mode::change(input(), |mode| mode & !whole)?;
        let screen = Mode::change(output(), |mode| mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING)?;
        Ok(Terminal { signals, keys: keys.is_some(), _modes: [keys, screen] })
    }

    /// Waits for a key, a signal, or the end of `time`.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn wait(&mut self, time: Duration) -> io::Result<Wake> {
        let waiter = self.signals.waiter()?;
        let mut left = time;
        loop {
            let step = left.min(LOOK_EVERY);
            if self.keys {
                if let Some(key) = key_within(step)? {
                    return Ok(Wake::Key(key));
                }
            } else {
                waiter.wait(step)?;
            }
            if self.signals.drain() > 0 {
                return Ok(Wake::Signal);
            }
            left = left.saturating_sub(step);
            if left == Duration::ZERO {
                return Ok(Wake::Timeout);
            }
        }
    }

    /// Sets back what was set.
    pub fn close(self) {}
}

fn input() -> HANDLE {
    io::stdin().as_raw_handle()
}

fn output() -> HANDLE {
    io::stdout().as_raw_handle()
}

/// How a console was.
#[derive(Debug)]
struct Mode(HANDLE, CONSOLE_MODE);

impl Mode {
    /// Changes the mode of a console; `None` when the handle is none's.
    fn change(console: HANDLE, change: impl Fn(CONSOLE_MODE) -> CONSOLE_MODE) -> io::Result<Option<Mode>> {
        let mut mode = 0;
        // SAFETY: the handle is one of the process's standard handles, and the pointer is to a live number.
        if unsafe { GetConsoleMode(console, &raw mut mode) } == 0 {
            return Ok(None);
        }
        // SAFETY: as above.
        if unsafe { SetConsoleMode(console, change(mode)) } == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(Mode(console, mode)))
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        // SAFETY: the handle is one of the process's standard handles.
        if unsafe { SetConsoleMode(self.0, self.1) } == 0 {
            log::debug!("SetConsoleMode: {}", io::Error::last_os_error());
        }
    }
}

/// The key that is pressed within this time, if there is one.
fn key_within(time: Duration) -> io::Result<Option<u8>> {
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX - 1);
    // SAFETY: the handle is one of the process's standard handles.
    match unsafe { WaitForSingleObject(input(), milliseconds) } {
        WAIT_OBJECT_0 => {}
        WAIT_FAILED => return Err(io::Error::last_os_error()),
        _ => return Ok(None),
    }
    let (mut record, mut read) = (INPUT_RECORD::default(), 0);
    // SAFETY: the pointers are to a live record, of which there is room for one, and a live number.
    if unsafe { ReadConsoleInputW(input(), &raw mut record, 1, &raw mut read) } == 0 {
        return Err(io::Error::last_os_error());
    }
    if read == 0 || u32::from(record.EventType) != KEY_EVENT {
        // The mouse, the window, the focus.
        return Ok(None);
    }
    // SAFETY: a record of this kind holds a key, whose character is a number either way.
    let (down, character) =
        unsafe { (record.Event.KeyEvent.bKeyDown, record.Event.KeyEvent.uChar.UnicodeChar) };
    // Keys without a character do not send any.
    Ok(u8::try_from(character).ok().filter(|octet| down != 0 && *octet != 0))
}

/// Columns and rows of the console on standard output; `None` when it is none.
pub fn size() -> Option<(usize, usize)> {
    let mut info = CONSOLE_SCREEN_BUFFER_INFO::default();
    // SAFETY: the handle is one of the process's standard handles, and the pointer is to a live structure.
    if unsafe { GetConsoleScreenBufferInfo(output(), &raw mut info) } == 0 {
        return None;
    }
    let window = info.srWindow;
    let across = |from: i16, to: i16| usize::try_from(i32::from(to) - i32::from(from) + 1).ok();
    let (columns, rows) = (across(window.Left, window.Right)?, across(window.Top, window.Bottom)?);
    (columns > 0 && rows > 0).then_some((columns, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_and_a_signal_ends_it() {
        let mut terminal = Terminal::open().unwrap();
        assert_eq!(terminal.wait(Duration::from_millis(1)).unwrap(), Wake::Timeout);
        terminal.signals.waker().and_then(|waker| waker.wake()).unwrap();
        assert_eq!(terminal.wait(Duration::from_secs(10)).unwrap(), Wake::Signal);
    }
}
