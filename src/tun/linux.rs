//! `/dev/net/tun`: one packet for each read and each write, without the 4-octet packet information (`IFF_NO_PI`).
//!
//! The interface lives as long as a descriptor of it is open: it is not made persistent, so a process that dies takes it along, and
//! the descriptor is close-on-exec, so that no child keeps it alive.

use super::{Device, OpenError, Received};
use crate::stack::Transmit;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Where the kernel hands out devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Octets of an interface's name, the final NUL included.
const NAME_SIZE: usize = libc::IFNAMSIZ;

/// A TUN device.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    mtu: u16,
}

impl Tun {
    /// Creates the interface `name` (at most 15 octets; a `%d` in it is replaced by the first free number), or takes an existing
    /// persistent one that nobody has open. It has no address and is down, and `mtu` is what `host` is going to set.
    pub fn open(name: &str, mtu: u16) -> Result<Tun, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(CLONE_DEVICE)
            .map_err(open_error)?;
        let mut request = Request::named(name).map_err(|source| interface_error(name, source))?;
        request.flags =
            (libc::IFF_TUN | libc::IFF_NO_PI).try_into().expect("the flags of a TUN device fit their field");
        // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, whose size and layout `Request` has.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(interface_error(name, io::Error::last_os_error()));
        }
        Ok(Tun { file, name: request.name(), mtu })
    }

    /// Takes a device that someone else opened (`--tun-fd`, or one from another network namespace): a TUN device without packet information
    /// and without a virtio header. It is made non-blocking and close-on-exec. `mtu` is that of its interface.
    pub fn from_fd(fd: OwnedFd, mtu: u16) -> Result<Tun, OpenError> {
        let raw = fd.as_raw_fd();
        let fail = |source, remedy: &str| OpenError {
            what: format!("cannot use descriptor {raw} as a TUN device"),
            source,
            remedy: remedy.into(),
        };
        let mut request = Request::default();
        // SAFETY: the descriptor is open, and TUNGETIFF writes one `ifreq`, whose size and layout `Request` has. A descriptor of another
        // kind answers with an error.
        if unsafe { libc::ioctl(raw, libc::TUNGETIFF, &raw mut request) } < 0 {
            return Err(fail(io::Error::last_os_error(), "it must come from /dev/net/tun, after TUNSETIFF"));
        }
        let flags = libc::c_int::from(request.flags);
        let wanted = libc::IFF_TUN | libc::IFF_NO_PI;
        if flags & (wanted | libc::IFF_VNET_HDR) != wanted {
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(fail(source, "open it with exactly IFF_TUN and IFF_NO_PI"));
        }
        set_flags(raw)
            .map_err(|source| fail(source, "the descriptor must be open for reading and writing"))?;
        Ok(Tun { file: File::from(fd), name: request.name(), mtu })
    }
}

/// `O_NONBLOCK` and `FD_CLOEXEC`, which a descriptor from elsewhere may lack.
fn set_flags(fd: libc::c_int) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFD takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Device for Tun {
    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match self.file.read(buffer) {
                Ok(len) => return Ok(Received { len, verify_checksum: true }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, packet: &Transmit<'_>) -> io::Result<()> {
        if packet.offload.is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the device does not segment or sum"));
        }
        let slices =
            [IoSlice::new(packet.header), IoSlice::new(packet.payload[0]), IoSlice::new(packet.payload[1])];
        loop {
            match self.file.write_vectored(&slices) {
                // The kernel takes a packet whole; less means that it was cut, and repeating the rest would make another packet of it.
                Ok(taken) if taken < packet.len() => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Source for Tun {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.file.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.file.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.file.as_raw_fd()).deregister(registry)
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

/// `struct ifreq` as TUNSETIFF and TUNGETIFF use it: a name and 16 bits of flags in a union that is 24 octets long.
#[repr(C)]
#[derive(Default)]
struct Request {
    name: [u8; NAME_SIZE],
    flags: i16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() >= size_of::<libc::ifreq>());

impl Request {
    fn named(name: &str) -> io::Result<Request> {
        let legal = !name.is_empty()
            && name.len() < NAME_SIZE
            && !matches!(name, "." | "..")
            && name.bytes().all(|octet| octet.is_ascii_graphic() && !matches!(octet, b'/' | b':'));
        if !legal {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut request = Request::default();
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    fn name(&self) -> String {
        CStr::from_bytes_until_nul(&self.name)
            .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
    }
}

fn open_error(source: io::Error) -> OpenError {
    let remedy = match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "load the driver with `modprobe tun`; in a container add the device, as `docker run --device /dev/net/tun` does"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "run as root, or give your user read and write access to /dev/net/tun; in a container add the device"
        }
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (`ulimit -n`)",
        _ => "check that /dev/net/tun is the TUN driver's device, character 10:200",
    };
    OpenError { what: format!("cannot open {CLONE_DEVICE}"), source, remedy: remedy.into() }
}

fn interface_error(name: &str, source: io::Error) -> OpenError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root or with CAP_NET_ADMIN; `ztun exec` needs neither".into()
        }
        Some(libc::EBUSY) => {
            format!(
                "another program has {name} open, perhaps another ztun: stop it, or choose a name with --tun"
            )
        }
        Some(libc::EINVAL) => {
            format!(
                "a name has 1 to 15 printable characters without `/` and `:`, and {name} must not be an interface of another kind"
            )
        }
        _ => "choose another name with --tun".into(),
    };
    OpenError { what: format!("cannot create the TUN device {name}"), source, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// A device whose other end is in the test: datagrams keep their boundaries as packets do.
    fn pair() -> (Tun, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Tun { file: File::from(OwnedFd::from(ours)), name: "test".into(), mtu: 1500 }, theirs)
    }

    #[test]
    fn the_three_slices_of_a_packet_leave_as_one() {
        let (mut tun, peer) = pair();
        tun.send(&Transmit { header: b"head", payload: [b"er and", b" data"], offload: None }).unwrap();
        let mut buffer = [0; 64];
        let len = peer.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"header and data");
    }

    #[test]
    fn nothing_to_read_and_no_room_to_write_are_would_block() {
        let (mut tun, peer) = pair();
        assert_eq!(tun.recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        peer.send(b"packet").unwrap();
        let mut buffer = [0; 64];
        assert_eq!(tun.recv(&mut buffer).unwrap(), Received { len: 6, verify_checksum: true });
        let packet = Transmit { header: &[0; 1400], payload: [&[], &[]], offload: None };
        let refused = (0..100_000).find_map(|_| tun.send(&packet).err()).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_packet_that_asks_for_offload_is_refused_and_not_sent_unsummed() {
        let (mut tun, _peer) = pair();
        let offload = crate::stack::Offload { checksum_start: 20, checksum_offset: 16, segment_size: 0 };
        let packet = Transmit { header: &[0; 40], payload: [&[], &[]], offload: Some(offload) };
        assert_eq!(tun.send(&packet).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn names_that_are_no_interface_names_are_refused_before_the_kernel_sees_them() {
        for name in ["", "sixteen-octets-x", "a/b", "a:b", "..", "a b", "tün"] {
            assert!(Request::named(name).is_err(), "{name}");
        }
        assert_eq!(Request::named("fifteen-octets-").unwrap().name(), "fifteen-octets-");
    }

    #[test]
    fn a_descriptor_of_another_kind_is_refused_with_a_remedy() {
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        let error = Tun::from_fd(OwnedFd::from(ours), 1500).unwrap_err();
        assert!(error.to_string().contains("/dev/net/tun"), "{error}");
    }

    #[test]
    fn every_refusal_of_the_kernel_has_a_remedy() {
        let text = |error: OpenError| error.to_string();
        assert!(text(open_error(io::Error::from_raw_os_error(libc::ENOENT))).contains("modprobe tun"));
        assert!(text(open_error(io::Error::from_raw_os_error(libc::EACCES))).contains("root"));
        assert!(text(interface_error("x", io::Error::from_raw_os_error(libc::EPERM))).contains("ztun exec"));
        assert!(text(interface_error("x", io::Error::from_raw_os_error(libc::EBUSY))).contains("--tun"));
    }
}
