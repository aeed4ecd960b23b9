//! `/dev/net/tun`: one packet for each read and each write, without the 4-octet packet information (`IFF_NO_PI`).
//!
//! # Offload
//!
//! With `IFF_VNET_HDR` each packet has a virtio-net header in front ([`vnet`]), and the kernel hands over what it has not segmented
//! and not summed: one TCP super-segment of up to 64 KB instead of forty packets, one train of datagrams of an app that sends with
//! UDP_SEGMENT, with the checksum field holding the sum of the pseudo-header only. It takes the same from us. Packets that stay on this
//! machine are never segmented or summed at all.
//!
//! What the kernel refuses costs only itself: the [levels](OffloadLevel) are tried from the best down, and [`Device::offload`] tells which it is.
//! The flags of one level came into the kernel together (TSO4 and TSO6; USO4 and USO6 in Linux 6.2), so none has one without the other.
//!
//! # Life
//!
//! The interface lives as long as a descriptor of it is open: it is not made persistent, so a process that dies takes it along, and
//! the descriptor is close-on-exec, so that no child keeps it alive.

use super::{Device, LoopWaker, MOST_PIECES, OpenError, Received};
use super::{descriptor, vnet};
use crate::stack::{Offload, OffloadLevel, Transmit};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Where the kernel hands out devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Octets of an interface's name, the final NUL included.
const NAME_SIZE: usize = libc::IFNAMSIZ;

/// Trains of datagrams (`linux/if_tun.h`, since Linux 6.2).
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// A TUN device.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    mtu: u16,
    /// A virtio-net header stands in front of each packet.
    vnet: bool,
    level: OffloadLevel,
}

impl Tun {
    /// Creates the interface `name` (at most 15 octets; a `%d` in it is replaced by the first free number), or takes an existing
    /// persistent one that nobody has open. It has no address and is down, and `mtu` is what `host` is going to set. `wanted`: what the
    /// kernel is to do at most; it does less where it cannot.
    pub fn open(name: &str, mtu: u16, wanted: OffloadLevel) -> Result<Tun, OpenError> {
        if wanted > OffloadLevel::Off {
            match Tun::create(name, mtu, libc::IFF_VNET_HDR) {
                Ok(tun) => match set_offload(tun.file.as_raw_fd(), wanted) {
                    Ok(OffloadLevel::Off) | Err(_) => {
                        log::debug!("the kernel does not offload on TUN devices: plain packets");
                    }
                    Ok(level) => {
                        log::debug!("offload: {level:?}");
                        return Ok(Tun { vnet: true, level, ..tun });
                    }
                },
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
        Ok(Tun { file, name: request.name(), mtu, vnet: false, level: OffloadLevel::Off })
    }

    /// Takes a device that someone else opened (`--tun-fd`, or one from another network namespace): a TUN device without packet information,
    /// with a virtio header or without. It is made non-blocking and close-on-exec. `mtu` is that of its interface. `wanted`: what the kernel is
    /// to do at most; without a virtio header it is nothing.
    pub fn from_fd(fd: OwnedFd, mtu: u16, wanted: OffloadLevel) -> Result<Tun, OpenError> {
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
        let needed = libc::IFF_TUN | libc::IFF_NO_PI;
        if flags & needed != needed {
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(fail(source, "open it with IFF_TUN and IFF_NO_PI"));
        }
        let vnet = flags & libc::IFF_VNET_HDR != 0;
        let level = if vnet {
            set_offload(raw, wanted).map_err(|source| fail(source, "open it without IFF_VNET_HDR"))?
        } else {
            OffloadLevel::Off
        };
        descriptor::set_flags(raw)
            .map_err(|source| fail(source, "the descriptor must be open for reading and writing"))?;
        Ok(Tun { file: File::from(fd), name: request.name(), mtu, vnet, level })
    }

    /// [`Tun::from_fd`] by number, as `--tun-fd` gives it. The descriptor is this process's from here on, and is closed at the end.
    pub fn from_raw(raw: i32, mtu: u16, wanted: OffloadLevel) -> Result<Tun, OpenError> {
        Tun::from_fd(descriptor::claim(raw, "a TUN device")?, mtu, wanted)
    }

    /// Reads a packet behind its virtio-net header. One that the header cannot be true of is none.
    fn recv_offloaded(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut header = [0; vnet::HEADER];
        let read = self.file.read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        let len = read.saturating_sub(vnet::HEADER);
        match vnet::parse(&header, buffer.get(..len).unwrap_or_default()) {
            Ok(vnet::Meta { verify_checksum, segment_size }) => {
                Ok(Received { len, verify_checksum, segment_size })
            }
            Err(why) => {
                log::debug!("malformed virtio header: {why:?}");
                Ok(Received { len: 0, verify_checksum: true, segment_size: 0 })
            }
        }
    }

    /// Refuses a packet that the device would have to do more for than it does.
    fn demand(&self, level: OffloadLevel) -> io::Result<()> {
        if level > self.level {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the device does not segment or sum that",
            ));
        }
        Ok(())
    }

    /// Writes the slices as one packet.
    fn write(&mut self, slices: &[IoSlice<'_>], whole: usize) -> io::Result<()> {
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
}

/// Asks for as much of `wanted` as the kernel does, behind a header of [`vnet::HEADER`] octets.
fn set_offload(fd: libc::c_int, wanted: OffloadLevel) -> io::Result<OffloadLevel> {
    let size = vnet::HEADER as libc::c_int;
    // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one int.
    if unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut refused = io::ErrorKind::Unsupported.into();
    for level in OffloadLevel::ALL.into_iter().rev().filter(|level| *level <= wanted) {
        // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
        if unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(features(level))) } == 0 {
            return Ok(level);
        }
        refused = io::Error::last_os_error();
    }
    Err(refused)
}

/// What TUNSETOFFLOAD is asked for.
fn features(level: OffloadLevel) -> libc::c_uint {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    match level {
        OffloadLevel::Off => 0,
        OffloadLevel::Checksum => libc::TUN_F_CSUM,
        OffloadLevel::Tcp => tcp,
        OffloadLevel::Full => tcp | TUN_F_USO4 | TUN_F_USO6,
    }
}

/// Whether opening a device may succeed when it is tried again: somebody else has it for a moment, or the system is short of something.
pub(super) fn can_pass(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
        || matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR | libc::ENODEV))
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
            let received = if self.vnet {
                self.recv_offloaded(buffer)
            } else {
                self.file.read(buffer).map(|len| Received { len, verify_checksum: true, segment_size: 0 })
            };
            match received {
                Ok(received) => return Ok(received),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, packet: &Transmit<'_>) -> io::Result<()> {
        let wanted = match packet.offload {
            None => OffloadLevel::Off,
            Some(Offload { segment_size: 0, .. }) => OffloadLevel::Checksum,
            Some(_) => OffloadLevel::Tcp,
        };
        self.demand(wanted)?;
        let vnet = vnet::describe(packet.header, packet.offload);
        let slices = [
            IoSlice::new(&vnet),
            IoSlice::new(packet.header),
            IoSlice::new(packet.payload[0]),
            IoSlice::new(packet.payload[1]),
        ];
        match self.vnet {
            true => self.write(&slices, packet.len() + vnet::HEADER),
            false => self.write(&slices[1..], packet.len()),
        }
    }

    fn send_train(&mut self, header: &[u8], pieces: &[&[u8]], offload: Offload) -> io::Result<()> {
        self.demand(OffloadLevel::Full)?;
        let vnet = vnet::describe(header, Some(offload));
        let mut slices = [IoSlice::new(&[]); 2 + MOST_PIECES];
        let given = slices.get_mut(..2 + pieces.len()).ok_or(io::ErrorKind::InvalidInput)?;
        given[0] = IoSlice::new(&vnet);
        given[1] = IoSlice::new(header);
        for (slice, piece) in given[2..].iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
        }
        let whole = given.iter().map(|slice| slice.len()).sum();
        self.write(given, whole)
    }

    fn offload(&self) -> OffloadLevel {
        self.level
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
        let file = File::from(OwnedFd::from(ours));
        let level = OffloadLevel::Off;
        (Tun { file, name: "test".into(), mtu: 1500, vnet: false, level }, theirs)
    }

    fn offloading_pair(level: OffloadLevel) -> (Tun, UnixDatagram) {
        let (tun, theirs) = pair();
        (Tun { vnet: true, level, ..tun }, theirs)
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
        let (mut tun, peer) = offloading_pair(OffloadLevel::Tcp);
        let offload = Offload { checksum_start: 20, checksum_offset: 16, segment_size: 1448 };
        let mut header = [0x45; 52];
        header[32] = 0x80;
        let packet = Transmit { header: &header, payload: [&[7; 100], &[8; 50]], offload: Some(offload) };
        tun.send(&packet).unwrap();
        let mut buffer = [0; 512];
        let len = peer.recv(&mut buffer).unwrap();
        assert_eq!(len, vnet::HEADER + packet.len());
        assert_eq!(buffer[..10], vnet::describe(&header, Some(offload)));
        assert_eq!(buffer[10..62], header);
        assert_eq!(buffer[62..212], [[7; 100].as_slice(), &[8; 50]].concat());
    }

    #[test]
    fn the_pieces_of_a_train_leave_as_one_packet() {
        let (mut tun, peer) = offloading_pair(OffloadLevel::Full);
        let offload = Offload { checksum_start: 20, checksum_offset: 6, segment_size: 3 };
        let mut buffer = [0; 512];
        let pieces: Vec<&[u8]> = [b"one".as_slice(); MOST_PIECES].to_vec();
        for count in [1, 2, MOST_PIECES] {
            tun.send_train(&[0x45; 28], &pieces[..count], offload).unwrap();
            let len = peer.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..10], vnet::describe(&[0x45; 28], Some(offload)));
            assert_eq!(buffer[38..len], b"one".repeat(count));
        }
        let many = [pieces, vec![b"x"]].concat();
        assert_eq!(
            tun.send_train(&[0x45; 28], &many, offload).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn what_the_kernel_vouches_for_is_not_verified_and_what_was_not_asked_for_is_no_packet() {
        let (mut tun, peer) = offloading_pair(OffloadLevel::Full);
        let mut receive = |header: [u8; vnet::HEADER], cut: usize| {
            let mut packet = [0; vnet::HEADER + 48];
            packet[..vnet::HEADER].copy_from_slice(&header);
            packet[vnet::HEADER] = 0x45;
            packet[vnet::HEADER + 9] = 17;
            peer.send(&packet[..cut]).unwrap();
            tun.recv(&mut [0; 64]).unwrap()
        };
        let train = |size| vnet::describe(&[0x45; 28], Some(Offload { segment_size: size, ..udp() }));
        fn udp() -> Offload {
            Offload { checksum_start: 20, checksum_offset: 6, segment_size: 0 }
        }
        let whole = Received { len: 48, verify_checksum: true, segment_size: 0 };
        assert_eq!(receive([0; 10], 58), whole);
        assert_eq!(receive(train(0), 58), Received { verify_checksum: false, ..whole });
        assert_eq!(receive(train(10), 58), Received { len: 48, verify_checksum: false, segment_size: 10 });
        let none = Received { len: 0, ..whole };
        let mut kind = train(10);
        kind[1] = 3;
        assert_eq!(receive(kind, 58), none);
        for cut in [0, 5, 10, 11, 30] {
            assert_eq!(receive(train(10), cut), none, "{cut} octets");
        }
    }

    #[test]
    fn nothing_to_read_and_no_room_to_write_are_would_block() {
        let (mut tun, peer) = pair();
        assert_eq!(tun.recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        peer.send(b"packet").unwrap();
        let mut buffer = [0; 64];
        let received = Received { len: 6, verify_checksum: true, segment_size: 0 };
        assert_eq!(tun.recv(&mut buffer).unwrap(), received);
        let packet = Transmit { header: &[0; 1400], payload: [&[], &[]], offload: None };
        let refused = (0..100_000).find_map(|_| tun.send(&packet).err()).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_packet_that_asks_for_more_than_there_is_is_refused_and_not_sent_unsummed() {
        let offload = |segment_size| Offload { checksum_start: 20, checksum_offset: 16, segment_size };
        for level in OffloadLevel::ALL {
            let (mut tun, _peer) = offloading_pair(level);
            let mut sent = |offload| {
                tun.send(&Transmit { header: &[0x45; 40], payload: [&[7; 9], &[]], offload }).is_ok()
            };
            assert!(sent(None));
            assert_eq!(sent(Some(offload(0))), level >= OffloadLevel::Checksum);
            assert_eq!(sent(Some(offload(5))), level >= OffloadLevel::Tcp);
            let train = tun.send_train(&[0x45; 28], &[b"a", b"b"], offload(1));
            assert_eq!(train.is_ok(), level == OffloadLevel::Full);
        }
    }

    #[test]
    fn each_level_asks_for_all_of_the_one_below() {
        let asked = OffloadLevel::ALL.map(features);
        for pair in asked.windows(2) {
            assert!(pair[0] & pair[1] == pair[0] && pair[0] != pair[1]);
        }
        assert_eq!(asked, [0, 1, 7, 0x67]);
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
        let error = Tun::from_fd(OwnedFd::from(ours), 1500, OffloadLevel::Full).unwrap_err();
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
