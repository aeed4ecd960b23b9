//! Wintun: a ring of packets in each direction that is shared with the driver.
//!
//! # Theory of operation
//!
//! The loop reads the one ring and writes the other; a packet is copied once, between ring and buffer. What the poll of this system cannot do is wait for the driver's event, so one
//! thread does: it touches no packet, and calls the loop's waker when the loop sleeps ([`handover`](super::handover)). It exists while the device is listened to.
//!
//! An adapter is known by the GUID that its name has ([`guid`](super::guid)). One that another run has left, or that is just going, is opened instead of made. It
//! ends with the process that has it open, and takes its addresses and routes along. One that somebody removes is an error of the next read, since the
//! driver ends the ring then and sets the event.
//!
//! There is no offload: every packet is summed and at most an MTU long.

use super::handover::Handover;
use super::{Device, Handed, LoopWaker, OpenError, Received, guid, wintun_library};
use crate::stack::{Offload, OffloadLevel, Transmit};
use mio::{Registry, Token, Waker};
use std::fmt;
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::sync::Arc;
use std::thread::JoinHandle;
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_ALREADY_EXISTS, ERROR_ALREADY_INITIALIZED, ERROR_BUFFER_OVERFLOW, ERROR_BUSY,
    ERROR_FILE_EXISTS, ERROR_OBJECT_ALREADY_EXISTS, ERROR_SHARING_VIOLATION, ERROR_TIMEOUT, HANDLE,
    WAIT_FAILED, WAIT_OBJECT_0, WAIT_TIMEOUT,
};
use windows_sys::Win32::System::Threading::{
    CreateEventW, INFINITE, SetEvent, WaitForMultipleObjects, WaitForSingleObject,
};
use wintun::{Adapter, Session};

/// Octets of each ring: what arrives in 60 ms at 1 Gbit/s. A power of two between 128 KiB and 64 MiB.
const RING: u32 = 8 << 20;
/// Milliseconds until the loop is woken to see whether a full ring has room.
const ROOM: u32 = 1;
/// What Windows calls this kind of adapter.
const KIND: &str = "ztun";

/// A Wintun device.
pub struct Tun {
    session: Arc<Session>,
    handover: Arc<Handover>,
    /// Calls the thread.
    bell: Arc<Event>,
    thread: Option<JoinHandle<()>>,
    name: String,
    mtu: u16,
}

impl fmt::Debug for Tun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tun").field("name", &self.name).field("mtu", &self.mtu).finish_non_exhaustive()
    }
}

impl Tun {
    /// Makes the adapter `name`, or opens the one that is there. It has no address, and `mtu` is what `host` is going to set. `wanted` is nothing here.
    ///
    /// # Errors
    ///
    /// wintun.dll is not there or not genuine, this user may not, or another program uses the adapter.
    pub fn open(name: &str, mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        let library = wintun_library::get()?;
        let fail = |source| open_error(name, source);
        let adapter = match Adapter::create(&library, name, KIND, Some(guid::of(name))) {
            Ok(adapter) => adapter,
            Err(error) => {
                let error = told(error);
                if !is_there_already(&error) {
                    return Err(fail(error));
                }
                log::debug!("the adapter {name} is there already: {error}");
                Adapter::open(&library, name).map_err(|error| fail(told(error)))?
            }
        };
        let session = adapter.start_session(RING).map_err(|error| fail(told(error)))?;
        let name = adapter.get_name().unwrap_or_else(|_| name.to_owned());
        let bell = Arc::new(Event::new().map_err(|source| open_error(&name, source))?);
        Ok(Tun { session: Arc::new(session), handover: Arc::default(), bell, thread: None, name, mtu })
    }

    /// Fails: adapters are not handed over from process to process here.
    ///
    /// # Errors
    ///
    /// Always.
    pub fn from_fd(_handle: Handed, _mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        Err(OpenError {
            what: "cannot use what was handed over as a TUN device".into(),
            source: io::ErrorKind::Unsupported.into(),
            remedy: "on Windows ztun makes its device itself: --tun names it".into(),
        })
    }

    /// Fails, as [`Tun::from_fd`] does.
    ///
    /// # Errors
    ///
    /// Always.
    pub fn from_raw(raw: i32, _mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        Err(OpenError {
            what: format!("cannot use descriptor {raw} as a TUN device"),
            source: io::ErrorKind::Unsupported.into(),
            remedy: "on Windows ztun makes its device itself: --tun names it".into(),
        })
    }

    fn call_thread(&self) {
        if let Err(error) = self.bell.set() {
            log::debug!("SetEvent: {error}");
        }
    }

    fn dismiss_thread(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.handover.end();
        self.call_thread();
        if thread.join().is_err() {
            log::debug!("the device's thread had panicked");
        }
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        // It has the session open.
        self.dismiss_thread();
    }
}

/// The system's error behind one of the library's, which keeps it to itself at times: the thread's last one then.
fn told(error: wintun::Error) -> io::Error {
    let last = io::Error::last_os_error();
    let kept = matches!(error, wintun::Error::String(_));
    if kept && last.raw_os_error().is_some_and(|number| number != 0) { last } else { error.into() }
}

/// Whether an error is that of Windows with this number.
fn is(error: &io::Error, numbers: &[u32]) -> bool {
    error.raw_os_error().is_some_and(|number| numbers.contains(&number.cast_unsigned()))
}

fn is_there_already(error: &io::Error) -> bool {
    is(error, &[ERROR_ALREADY_EXISTS, ERROR_FILE_EXISTS, ERROR_OBJECT_ALREADY_EXISTS])
}

/// Whether opening a device may succeed when it is tried again: one of the same name is just going, or Windows is still busy with its driver.
pub(super) fn can_pass(error: &io::Error) -> bool {
    is(error, &[ERROR_BUSY, ERROR_SHARING_VIOLATION, ERROR_TIMEOUT, WAIT_TIMEOUT, ERROR_ALREADY_INITIALIZED])
        || error.kind() == io::ErrorKind::Interrupted
}

fn open_error(name: &str, source: io::Error) -> OpenError {
    let remedy = if is(&source, &[ERROR_ACCESS_DENIED]) {
        "start it as administrator".into()
    } else if is(&source, &[ERROR_ALREADY_INITIALIZED]) {
        format!("another program uses {name}: stop it, or choose another name with --tun")
    } else {
        "look at what Windows says of its driver: C:\\Windows\\INF\\setupapi.dev.log".into()
    };
    OpenError { what: format!("cannot create the device {name}"), source, remedy }
}

impl Device for Tun {
    fn listen(&mut self, registry: &Registry, token: Token, waker: &mut LoopWaker) -> io::Result<()> {
        self.dismiss_thread();
        let waker = waker.get(registry, token)?;
        self.handover = Arc::default();
        let (session, bell) = (Arc::clone(&self.session), Arc::clone(&self.bell));
        let handover = Arc::clone(&self.handover);
        let body = move || {
            if let Err(error) = watch(&session, &bell, &handover, &waker) {
                log::error!("the device is not listened to any more: {error}");
            }
        };
        #[allow(clippy::disallowed_methods, reason = "the poll cannot wait for the driver's event")]
        let thread = std::thread::Builder::new().name("ztun-wintun".into()).spawn(body)?;
        self.thread = Some(thread);
        Ok(())
    }

    fn ignore(&mut self, _registry: &Registry) -> io::Result<()> {
        self.dismiss_thread();
        Ok(())
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let packet = self.handover.take(|| self.session.try_receive().map_err(io::Error::from))?;
        let octets = packet.bytes();
        let room = buffer.get_mut(..octets.len()).ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(octets);
        Ok(Received { len: octets.len(), verify_checksum: true, segment_size: 0 })
    }

    fn send(&mut self, packet: &Transmit<'_>) -> io::Result<()> {
        let (Ok(len), None) = (u16::try_from(packet.len()), packet.offload) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut place = match self.session.allocate_send_packet(len).map_err(io::Error::from) {
            Ok(place) => place,
            Err(error) if is(&error, &[ERROR_BUFFER_OVERFLOW]) => {
                self.handover.wait_for_room();
                self.call_thread();
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(error) => return Err(error),
        };
        let mut rest = place.bytes_mut();
        for piece in [packet.header, packet.payload[0], packet.payload[1]] {
            // As long as the pieces are together: what was allocated has to be sent, whatever it is.
            let Some((front, back)) = rest.split_at_mut_checked(piece.len()) else { break };
            front.copy_from_slice(piece);
            rest = back;
        }
        self.session.send_packet(place);
        Ok(())
    }

    fn send_train(&mut self, _header: &[u8], _pieces: &[&[u8]], _offload: Offload) -> io::Result<()> {
        Err(io::ErrorKind::InvalidInput.into())
    }

    fn offload(&self) -> OffloadLevel {
        OffloadLevel::Off
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// What the thread does until it is dismissed.
fn watch(session: &Session, bell: &Event, handover: &Handover, waker: &Waker) -> io::Result<()> {
    let packets = session.get_read_wait_event()? as HANDLE;
    let handles = [packets, bell.handle()];
    while !handover.has_ended() {
        // SAFETY: the handles are the session's and the bell's, both of which are borrowed for as long as the call lasts.
        let event = unsafe { WaitForMultipleObjects(2, handles.as_ptr(), 0, INFINITE) };
        if event == WAIT_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut wake = event == WAIT_OBJECT_0 && handover.must_wake();
        if handover.waits_for_room() {
            // The ring does not tell. Nothing is read meanwhile: the loop reads no packet before it has sent what waits.
            // SAFETY: the handle is the bell's, which is borrowed.
            unsafe { WaitForSingleObject(bell.handle(), ROOM) };
            wake = true;
        }
        if wake {
            waker.wake()?;
        }
    }
    Ok(())
}

/// An event that resets itself.
struct Event(OwnedHandle);

impl Event {
    fn new() -> io::Result<Event> {
        // SAFETY: no attributes and no name are given; the rest are flags.
        let handle = unsafe { CreateEventW(std::ptr::null(), 0, 0, std::ptr::null()) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the handle was just made, and nobody else has it.
        Ok(Event(unsafe { OwnedHandle::from_raw_handle(handle) }))
    }

    fn handle(&self) -> HANDLE {
        self.0.as_raw_handle()
    }

    fn set(&self) -> io::Result<()> {
        // SAFETY: the handle is that of an event, and open.
        if unsafe { SetEvent(self.handle()) } == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_pass_are_told_from_those_that_do_not() {
        let error = |number: u32| io::Error::from_raw_os_error(number.cast_signed());
        assert!(can_pass(&error(ERROR_BUSY)) && !can_pass(&error(ERROR_ACCESS_DENIED)));
        assert!(is_there_already(&error(ERROR_ALREADY_EXISTS)) && !is_there_already(&error(ERROR_BUSY)));
        assert!(open_error("ztun0", error(ERROR_ACCESS_DENIED)).remedy.contains("administrator"));
    }

    #[test]
    fn an_event_resets_itself() {
        let event = Event::new().unwrap();
        event.set().unwrap();
        // SAFETY: the handle is open.
        let wait = || unsafe { WaitForSingleObject(event.handle(), 0) };
        assert_eq!((wait(), wait()), (WAIT_OBJECT_0, WAIT_TIMEOUT));
    }
}
