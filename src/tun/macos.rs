//! Darwin's utun: a socket of the kernel control `com.apple.net.utun_control`, one packet for each read and each write, with a header of four octets
//! in front ([`utun`](super::utun)).
//!
//! The kernel names interfaces by number, `utun0` and so on, and there are no other names. The
//! interface lives as long as the socket, which is close-on-exec: a process that dies takes it along, with its addresses and routes. There is no
//! offload, and no way to have it: every packet is summed and at most an MTU long.
//!
//! macOS makes one for whom is root (`control`); iOS hands one to a packet tunnel provider, which is read and written the same.

use super::{Device, LoopWaker, OpenError, Received};
use super::{descriptor, utun};
use crate::stack::{Offload, OffloadLevel, Transmit};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

#[cfg_attr(target_os = "macos", path = "control_macos.rs")]
#[cfg_attr(not(target_os = "macos"), path = "control_plain.rs")]
mod control;

/// The protocol of kernel controls, and the level of their options (sys/sys_domain.h). The headers for iOS leave it out.
const SYSPROTO_CONTROL: libc::c_int = 2;
/// The option that tells an interface's name (net/if_utun.h). The headers for iOS leave it out.
const UTUN_OPT_IFNAME: libc::c_int = 2;
/// The option that says how many packets may wait to be read (net/if_utun.h; libc leaves it out).
const UTUN_OPT_MAX_PENDING_PACKETS: libc::c_int = 16;
/// As many as that are to wait at most, and octets of them: half of what the kernel has room for (`ctl_recvsize` in `if_utun.c`).
const MOST_PENDING: u32 = 128;
const MOST_PENDING_OCTETS: u32 = 256 << 10;

/// A utun device.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    mtu: u16,
}

impl Tun {
    /// Creates an interface, which is named utun and a number. It is up, without an address, and `mtu` is what
    /// `host` is going to set. `wanted` is nothing here.
    pub fn open(name: &str, mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        let fail = |source| open_error(name, source);
        let fd = control::create(name).map_err(fail)?;
        Tun::of(fd, mtu).map_err(fail)
    }

    /// Takes a utun socket that someone else opened. It is made non-blocking and close-on-exec. `mtu` is that of its interface.
    pub fn from_fd(fd: OwnedFd, mtu: u16, _wanted: OffloadLevel) -> Result<Tun, OpenError> {
        let raw = fd.as_raw_fd();
        Tun::of(fd, mtu).map_err(|source| OpenError {
            what: format!("cannot use descriptor {raw} as a utun device"),
            source,
            remedy: "it must be a connected socket of com.apple.net.utun_control".into(),
        })
    }

    /// [`Tun::from_fd`] by number, as `--tun-fd` gives it. The descriptor is this process's from here on, and is closed at the end.
    pub fn from_raw(raw: RawFd, mtu: u16, wanted: OffloadLevel) -> Result<Tun, OpenError> {
        Tun::from_fd(descriptor::claim(raw, "a utun device")?, mtu, wanted)
    }

    fn of(fd: OwnedFd, mtu: u16) -> io::Result<Tun> {
        let name = interface_name(&fd)?;
        descriptor::set_flags(fd.as_raw_fd())?;
        if let Err(error) = let_wait(&fd, pending(mtu)) {
            log::debug!("one packet waits at {name} at a time: {error}");
        }
        Ok(Tun { file: File::from(fd), name, mtu })
    }
}

/// The name of the interface behind the socket; an error for a descriptor of another kind.
fn interface_name(fd: &OwnedFd) -> io::Result<String> {
    let mut name = [0u8; libc::IFNAMSIZ];
    let mut len = name.len() as libc::socklen_t;
    // SAFETY: the buffer outlives the call and is as long as is told.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            SYSPROTO_CONTROL,
            UTUN_OPT_IFNAME,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = name.get(..len as usize).unwrap_or_default();
    let end = name.iter().position(|octet| *octet == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// How many packets of this length are to wait.
fn pending(mtu: u16) -> u32 {
    (MOST_PENDING_OCTETS / (u32::from(mtu) + utun::HEADER as u32)).clamp(1, MOST_PENDING)
}

/// Has so many packets wait to be read. It is one otherwise, and the next comes when that has been read: each read would find one, and each burst
/// would wait, and be lost, in front of the interface.
fn let_wait(fd: &OwnedFd, packets: u32) -> io::Result<()> {
    // SAFETY: the option is four octets, which live through the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            SYSPROTO_CONTROL,
            UTUN_OPT_MAX_PENDING_PACKETS,
            (&raw const packets).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether opening a device may succeed when it is tried again: its number is still taken by one that goes.
pub(super) fn can_pass(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBUSY | libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM)
    )
}

fn open_error(name: &str, source: io::Error) -> OpenError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run with sudo".into(),
        Some(libc::EBUSY) => {
            format!("another program has {name}: choose another number with --tun")
        }
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (`ulimit -n`)".into(),
        _ => "names are utun and a number, as in --tun utun7".into(),
    };
    OpenError { what: format!("cannot create the device {name}"), source, remedy }
}

impl Device for Tun {
    fn listen(&mut self, registry: &Registry, token: Token, _waker: &mut LoopWaker) -> io::Result<()> {
        registry.register(
            &mut SourceFd(&self.file.as_raw_fd()),
            token,
            Interest::READABLE | Interest::WRITABLE,
        )
    }

    fn ignore(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut SourceFd(&self.file.as_raw_fd()))
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut header = [0; utun::HEADER];
            match self.file.read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)]) {
                // There is always a header: the interface is gone.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    let len = read.saturating_sub(utun::HEADER);
                    let packet = buffer.get(..len).unwrap_or_default();
                    // What the header cannot be true of is no packet.
                    let len = if utun::is_true_of(header, packet) { len } else { 0 };
                    return Ok(Received { len, verify_checksum: true, segment_size: 0 });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, packet: &Transmit<'_>) -> io::Result<()> {
        let described = packet.header.first().and_then(|first| utun::describe(*first));
        let (Some(header), None) = (described, packet.offload) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let slices = [
            IoSlice::new(&header),
            IoSlice::new(packet.header),
            IoSlice::new(packet.payload[0]),
            IoSlice::new(packet.payload[1]),
        ];
        loop {
            match self.file.write_vectored(&slices) {
                // The kernel takes a packet whole; repeating the rest would make another packet of it.
                Ok(taken) if taken < utun::HEADER + packet.len() => {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Tun> for OwnedFd {
    fn from(tun: Tun) -> OwnedFd {
        tun.file.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::net::UnixStream;

    fn device(fd: impl Into<OwnedFd>) -> Tun {
        Tun { file: File::from(fd.into()), name: "utun122".into(), mtu: 1500 }
    }

    #[test]
    fn as_many_packets_wait_as_the_kernel_has_room_for() {
        assert_eq!([0, 1280, 1500, 9000, u16::MAX].map(pending), [128, 128, 128, 29, 3]);
    }

    #[test]
    fn a_device_whose_socket_has_ended_is_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(device(ours).recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_has_no_true_header_is_no_packet_and_does_not_end_the_device() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut device = device(ours);
        for (datagram, len) in
            [(&[0][..], 0), (&[0, 0, 0, 2], 0), (&[0, 0, 0, 2, 0x60], 0), (&[0, 0, 0, 2, 0x45, 7], 2)]
        {
            theirs.send(datagram).unwrap();
            assert_eq!(device.recv(&mut [0; 64]).unwrap().len, len, "{datagram:?}");
        }
    }
}
