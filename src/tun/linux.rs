//! `/dev/net/tun`: one packet for each read and each write, without the 4-octet packet information (`IFF_NO_PI`).
//!
//! # Offload
//!
//! With `IFF_VNET_HDR` each packet has a virtio-net header in front, and the kernel hands over what it has not segmented and not summed: one
//! TCP super-segment of up to 64 KB instead of forty packets, with the checksum field holding the sum of the pseudo-header only. It
//! takes the same from us. Packets that stay on this machine are never segmented or summed at all. Where the kernel refuses any of it the
//! device falls back to plain packets by itself; [`Device::offload`] tells which it is.
//!
//! The header comes from the kernel and is checked all the same: a packet of a kind that was not asked for is dropped as malformed.
//!
//! # Life
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
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Where the kernel hands out devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Octets of an interface's name, the final NUL included.
const NAME_SIZE: usize = libc::IFNAMSIZ;

/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6), in the octet order of this machine.
const VNET_HEADER: usize = 10;
/// The checksum field holds a partial sum only.
const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;

/// A TUN device.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    mtu: u16,
    /// A virtio-net header stands in front of each packet.
    vnet: bool,
}

impl Tun {
    /// Creates the interface `name` (at most 15 octets; a `%d` in it is replaced by the first free number), or takes an existing
    /// persistent one that nobody has open. It has no address and is down, and `mtu` is what `host` is going to set. `offload`: let the
    /// kernel segment and sum, if it can.
    pub fn open(name: &str, mtu: u16, offload: bool) -> Result<Tun, OpenError> {
        if offload {
            match Tun::create(name, mtu, libc::IFF_VNET_HDR) {
                Ok(tun) if set_offload(tun.file.as_raw_fd()).is_ok() => return Ok(Tun { vnet: true, ..tun }),
                Ok(_) => log::debug!("the kernel does not offload on TUN devices: plain packets"),
                Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => {
                    log::debug!("no virtio header on TUN devices: plain packets");
                }
                Err(error) => return Err(error),
            }
        }
        Tun::create(name, mtu, 0)
    }

    fn create(name: &str, mtu: u16, flags: libc::c_int) -> Result<Tun, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(CLONE_DEVICE)
            .map_err(open_error)?;
        let mut request = Request::named(name).map_err(|source| interface_error(name, source))?;
        request.flags = (libc::IFF_TUN | libc::IFF_NO_PI | flags)
            .try_into()
            .expect("the flags of a TUN device fit their field");
        // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, whose size and layout `Request` has.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(interface_error(name, io::Error::last_os_error()));
        }
        Ok(Tun { file, name: request.name(), mtu, vnet: false })
    }

    /// Takes a device that someone else opened (`--tun-fd`, or one from another network namespace): a TUN device without packet information,
    /// with a virtio header or without. It is made non-blocking and close-on-exec. `mtu` is that of its interface.
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
        if flags & wanted != wanted {
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(fail(source, "open it with IFF_TUN and IFF_NO_PI"));
        }
        let vnet = flags & libc::IFF_VNET_HDR != 0;
        if vnet {
            set_offload(raw).map_err(|source| fail(source, "open it without IFF_VNET_HDR"))?;
        }
        set_flags(raw)
            .map_err(|source| fail(source, "the descriptor must be open for reading and writing"))?;
        Ok(Tun { file: File::from(fd), name: request.name(), mtu, vnet })
    }

    /// [`Tun::from_fd`] by number, as `--tun-fd` gives it. The descriptor is this process's from here on, and is closed at the end.
    pub fn from_raw(raw: i32, mtu: u16) -> Result<Tun, OpenError> {
        // SAFETY: F_GETFD takes no argument and touches no memory of ours.
        if raw <= libc::STDERR_FILENO || unsafe { libc::fcntl(raw, libc::F_GETFD) } < 0 {
            return Err(OpenError {
                what: format!("cannot use descriptor {raw} as a TUN device"),
                source: io::Error::from_raw_os_error(libc::EBADF),
                remedy: "it must be open in this process: whoever starts ztun has to pass it on".into(),
            });
        }
        // SAFETY: the descriptor is open and above the standard ones; nothing else in this process knows it.
        Tun::from_fd(unsafe { OwnedFd::from_raw_fd(raw) }, mtu)
    }

    /// Reads a packet behind its virtio-net header.
    fn recv_offloaded(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut header = [0; VNET_HEADER];
        let read = self.file.read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        let len = read.saturating_sub(VNET_HEADER);
        let [flags, gso_type, ..] = header;
        let version = buffer.first().map_or(0, |octet| octet >> 4);
        // Only what was asked for: whole packets, and TCP super-segments of their own IP version.
        let known = matches!(
            (gso_type, version),
            (VIRTIO_NET_HDR_GSO_NONE, _) | (VIRTIO_NET_HDR_GSO_TCPV4, 4) | (VIRTIO_NET_HDR_GSO_TCPV6, 6)
        );
        let vouched = flags & (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID) != 0;
        Ok(Received { len: if known { len } else { 0 }, verify_checksum: !vouched })
    }
}

/// The virtio-net header of a packet to the kernel.
fn vnet_header(packet: &Transmit<'_>) -> [u8; VNET_HEADER] {
    let mut header = [0; VNET_HEADER];
    let Some(offload) = packet.offload else { return header };
    header[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    if offload.segment_size > 0 {
        let v6 = packet.header.first().is_some_and(|octet| octet >> 4 == 6);
        header[1] = if v6 { VIRTIO_NET_HDR_GSO_TCPV6 } else { VIRTIO_NET_HDR_GSO_TCPV4 };
        let headers = u16::try_from(packet.header.len()).unwrap_or(u16::MAX);
        header[2..4].copy_from_slice(&headers.to_ne_bytes());
        header[4..6].copy_from_slice(&offload.segment_size.to_ne_bytes());
    }
    header[6..8].copy_from_slice(&offload.checksum_start.to_ne_bytes());
    header[8..10].copy_from_slice(&offload.checksum_offset.to_ne_bytes());
    header
}

/// Asks for unsegmented TCP and unsummed packets, behind a header of [`VNET_HEADER`] octets.
fn set_offload(fd: libc::c_int) -> io::Result<()> {
    let size = VNET_HEADER as libc::c_int;
    // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one int.
    if unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let features = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
    if unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(features)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
            let received = if self.vnet {
                self.recv_offloaded(buffer)
            } else {
                self.file.read(buffer).map(|len| Received { len, verify_checksum: true })
            };
            match received {
                Ok(received) => return Ok(received),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, packet: &Transmit<'_>) -> io::Result<()> {
        if packet.offload.is_some() && !self.vnet {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the device does not segment or sum"));
        }
        let vnet = vnet_header(packet);
        let slices = [
            IoSlice::new(&vnet),
            IoSlice::new(packet.header),
            IoSlice::new(packet.payload[0]),
            IoSlice::new(packet.payload[1]),
        ];
        let (slices, whole) =
            if self.vnet { (&slices[..], packet.len() + VNET_HEADER) } else { (&slices[1..], packet.len()) };
        loop {
            match self.file.write_vectored(slices) {
                // The kernel takes a packet whole; less means that it was cut, and repeating the rest would make another packet of it.
                Ok(taken) if taken < whole => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn offload(&self) -> bool {
        self.vnet
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
        Some(libc::ENOTTY) => {
            format!(
                "{CLONE_DEVICE} is not the TUN driver's device, character 10:200: load the driver with `modprobe tun`"
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
        (Tun { file: File::from(OwnedFd::from(ours)), name: "test".into(), mtu: 1500, vnet: false }, theirs)
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
    fn a_super_segment_carries_its_header_as_virtio_has_it() {
        let (mut tun, peer) = pair();
        tun.vnet = true;
        let offload = crate::stack::Offload { checksum_start: 20, checksum_offset: 16, segment_size: 1448 };
        let packet = Transmit { header: &[0x45; 52], payload: [&[7; 100], &[8; 50]], offload: Some(offload) };
        tun.send(&packet).unwrap();
        let mut buffer = [0; 512];
        let len = peer.recv(&mut buffer).unwrap();
        assert_eq!(len, VNET_HEADER + packet.len());
        let field = |at: usize| u16::from_ne_bytes([buffer[at], buffer[at + 1]]);
        assert_eq!(buffer[..2], [VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4]);
        assert_eq!([field(2), field(4), field(6), field(8)], [52, 1448, 20, 16]);
    }

    #[test]
    fn what_the_kernel_vouches_for_is_not_verified_and_what_was_not_asked_for_is_no_packet() {
        let (mut tun, peer) = pair();
        tun.vnet = true;
        let mut receive = |flags: u8, gso: u8, first: u8| {
            let mut packet = [0; VNET_HEADER + 20];
            packet[..2].copy_from_slice(&[flags, gso]);
            packet[VNET_HEADER] = first;
            peer.send(&packet).unwrap();
            tun.recv(&mut [0; 64]).unwrap()
        };
        assert_eq!(receive(0, VIRTIO_NET_HDR_GSO_NONE, 0x45), Received { len: 20, verify_checksum: true });
        assert!(!receive(VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, 0x45).verify_checksum);
        assert_eq!(receive(1, VIRTIO_NET_HDR_GSO_TCPV4, 0x60).len, 0);
        assert_eq!(receive(1, 5, 0x45).len, 0);
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
