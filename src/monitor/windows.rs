//! Windows tells of interfaces, addresses and routes by calling back; its IP Helper has the tables.
//!
//! The calls come on a thread of the system's, which sets a flag and wakes the loop: by a datagram of a socket that is connected to itself, since the poll can have
//! one waker, and the device has that. What was told and not taken yet needs no second datagram. As everywhere a change is a reason to read everything
//! again, and to compare the clocks: a machine that wakes sets up its network anew.
//!
//! What the rows mean is [`mib`].

use super::mib::{self, Link, Route, Told};
use super::{IfIndex, Monitor, NetworkState, Noticed, Own, Path, Question, debounce::Clocks};
use mio::event::Source;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;
use windows_sys::Win32::Foundation::{
    ERROR_FILE_NOT_FOUND, ERROR_HOST_UNREACHABLE, ERROR_NETWORK_UNREACHABLE, ERROR_NOT_FOUND, FILETIME,
    HANDLE, NO_ERROR,
};
use windows_sys::Win32::NetworkManagement::IpHelper::{
    CancelMibChangeNotify2, FreeMibTable, GetBestRoute2, GetIfTable2, GetIpForwardTable2,
    GetIpInterfaceEntry, GetUnicastIpAddressTable, MIB_IF_ROW2, MIB_IPFORWARD_ROW2, MIB_IPINTERFACE_ROW,
    MIB_NOTIFICATION_TYPE, MIB_UNICASTIPADDRESS_ROW, NotifyIpInterfaceChange, NotifyRouteChange2,
    NotifyUnicastIpAddressChange,
};
use windows_sys::Win32::Networking::WinSock::{ADDRESS_FAMILY, AF_INET, AF_INET6, AF_UNSPEC, SOCKADDR_INET};
use windows_sys::Win32::System::SystemInformation::{GetSystemTimeAsFileTime, GetTickCount64};
use windows_sys::Win32::System::WindowsProgramming::QueryUnbiasedInterruptTime;

/// What the callbacks share with the loop.
#[derive(Debug)]
struct Shared {
    /// What was told and not taken yet ([`mib::to_bits`]).
    told: AtomicU8,
    /// The device's index; 0 while there is none.
    own: AtomicU32,
    /// Connected to itself.
    bell: std::net::UdpSocket,
}

impl Shared {
    fn own(&self) -> Option<u32> {
        Some(self.own.load(Ordering::Relaxed)).filter(|index| *index != 0)
    }

    /// Called on a thread of the system's.
    fn tell(&self, told: Told, index: u32, notification: MIB_NOTIFICATION_TYPE) {
        let bits = mib::to_bits(mib::meaning(told, index, self.own(), notification));
        if bits != 0 && self.told.fetch_or(bits, Ordering::AcqRel) == 0 {
            // One that cannot be sent has many before it that wait.
            let _ = self.bell.send(&[0]);
        }
    }
}

/// One of the system's promises to call back.
#[derive(Debug)]
struct Subscription(HANDLE);

impl Drop for Subscription {
    fn drop(&mut self) {
        // SAFETY: the handle is that of a subscription, ended once. When the call returns no callback runs any more.
        unsafe { CancelMibChangeNotify2(self.0) };
    }
}

/// The network of this machine.
#[derive(Debug)]
pub struct SystemMonitor {
    own: Own,
    /// Ended before what they share with the loop goes.
    _subscriptions: [Subscription; 3],
    shared: Arc<Shared>,
    bell: UdpSocket,
}

impl SystemMonitor {
    /// Watches this machine's network, in which `own` are ztun's own things.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn new(own: Own) -> io::Result<SystemMonitor> {
        let bell = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        // What others send does not come through.
        bell.connect(bell.local_addr()?)?;
        bell.set_nonblocking(true)?;
        let read = UdpSocket::from_std(bell.try_clone()?);
        let shared = Arc::new(Shared { told: AtomicU8::new(0), own: AtomicU32::new(0), bell });
        // Before anything is read, so that what changes meanwhile is told.
        let subscriptions = subscribe(&shared)?;
        let mut monitor = SystemMonitor { own, _subscriptions: subscriptions, shared, bell: read };
        monitor.links()?;
        Ok(monitor)
    }

    /// All interfaces but the device, which is looked for.
    fn links(&mut self) -> io::Result<NetworkState> {
        let mut state = NetworkState::default();
        let mut own = 0;
        // SAFETY: the pointer is to a live pointer.
        let links = Table::<MIB_IF_ROW2>::read(|table| unsafe { GetIfTable2(table.cast()) })?;
        for row in links.rows() {
            let link = Link {
                index: row.InterfaceIndex,
                alias: &row.Alias,
                flags: row.InterfaceAndOperStatusFlags._bitfield,
                status: row.OperStatus,
                media: row.MediaConnectState,
            };
            match mib::interface(&link) {
                Some(found) if found.name.eq_ignore_ascii_case(&self.own.device) => own = found.index.0,
                Some(found) => state.interfaces.push(found),
                None => {}
            }
        }
        self.shared.own.store(own, Ordering::Relaxed);
        state.interfaces.sort_unstable_by_key(|interface| interface.index);
        Ok(state)
    }

    fn addresses(&self, state: &mut NetworkState) -> io::Result<()> {
        let table = Table::<MIB_UNICASTIPADDRESS_ROW>::read(|table| {
            // SAFETY: the pointer is to a live pointer.
            unsafe { GetUnicastIpAddressTable(AF_UNSPEC, table.cast()) }
        })?;
        for row in table.rows().iter().filter(|row| Some(row.InterfaceIndex) != self.shared.own()) {
            let addr = mib::address(&octets(&row.Address));
            state.addresses.extend(addr.map(|addr| (IfIndex(row.InterfaceIndex), addr)));
        }
        state.addresses.sort_unstable();
        Ok(())
    }

    fn defaults(&self, state: &mut NetworkState) -> io::Result<()> {
        let table = Table::<MIB_IPFORWARD_ROW2>::read(|table| {
            // SAFETY: the pointer is to a live pointer.
            unsafe { GetIpForwardTable2(AF_UNSPEC, table.cast()) }
        })?;
        let mut metrics = BTreeMap::new();
        for row in table.rows().iter().filter(|row| Some(row.InterfaceIndex) != self.shared.own()) {
            let route = route(row);
            let Some(v6) = mib::default_route(&route, 0).map(|found| found.v6) else { continue };
            let metric = *metrics.entry((route.interface, v6)).or_insert_with(|| metric(row, v6));
            state.defaults.extend(mib::default_route(&route, metric));
        }
        state.defaults.sort_by_key(|route| (route.v6, route.metric));
        Ok(())
    }
}

/// Has the system tell `shared` of interfaces, addresses and routes.
fn subscribe(shared: &Arc<Shared>) -> io::Result<[Subscription; 3]> {
    let context: *const c_void = Arc::as_ptr(shared).cast();
    let subscription = |begin: &dyn Fn(*mut HANDLE) -> u32| {
        let mut handle: HANDLE = std::ptr::null_mut();
        checked(begin(&raw mut handle)).map(|()| Subscription(handle))
    };
    // SAFETY of the three: the callback is of the type that the call expects, and the context lives as long as the subscription: the monitor has both, and ends
    // the subscription first. The handle is a live, writable pointer.
    Ok([
        subscription(&|handle| {
            // SAFETY: see above.
            unsafe { NotifyIpInterfaceChange(AF_UNSPEC, Some(interface_changed), context, false, handle) }
        })?,
        subscription(&|handle| {
            // SAFETY: see above.
            unsafe { NotifyUnicastIpAddressChange(AF_UNSPEC, Some(address_changed), context, false, handle) }
        })?,
        subscription(&|handle| {
            // SAFETY: see above.
            unsafe { NotifyRouteChange2(AF_UNSPEC, Some(route_changed), context, false, handle) }
        })?,
    ])
}

/// Hands what the system has told to the loop.
///
/// # Safety
///
/// `context` is that of [`subscribe`], and `index` reads the row if there is one.
unsafe fn tell(context: *const c_void, told: Told, index: Option<u32>, notification: MIB_NOTIFICATION_TYPE) {
    // SAFETY: it leads to what the monitor keeps alive as long as it is subscribed.
    let shared = unsafe { &*context.cast::<Shared>() };
    shared.tell(told, index.unwrap_or(0), notification);
}

unsafe extern "system" fn interface_changed(
    context: *const c_void,
    row: *const MIB_IPINTERFACE_ROW,
    notification: MIB_NOTIFICATION_TYPE,
) {
    // SAFETY: the row is there for the time of the call, or there is none; the context is ours.
    unsafe { tell(context, Told::Interface, row.as_ref().map(|row| row.InterfaceIndex), notification) };
}

unsafe extern "system" fn address_changed(
    context: *const c_void,
    row: *const MIB_UNICASTIPADDRESS_ROW,
    notification: MIB_NOTIFICATION_TYPE,
) {
    // SAFETY: the row is there for the time of the call, or there is none; the context is ours.
    unsafe { tell(context, Told::Address, row.as_ref().map(|row| row.InterfaceIndex), notification) };
}

unsafe extern "system" fn route_changed(
    context: *const c_void,
    row: *const MIB_IPFORWARD_ROW2,
    notification: MIB_NOTIFICATION_TYPE,
) {
    // SAFETY: the row is there for the time of the call, or there is none; the context is ours.
    unsafe { tell(context, Told::Route, row.as_ref().map(|row| row.InterfaceIndex), notification) };
}

impl Source for SystemMonitor {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.bell.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.bell.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.bell.deregister(registry)
    }
}

impl Monitor for SystemMonitor {
    fn drain(&mut self) -> io::Result<Noticed> {
        // First the datagrams, then what they stand for: what is told in between is taken, and one datagram too many comes.
        while self.bell.recv(&mut [0; 8]).is_ok() {}
        let noticed = mib::from_bits(self.shared.told.swap(0, Ordering::AcqRel));
        Ok(Noticed { woke: noticed != Noticed::NOTHING, ..noticed })
    }

    fn state(&mut self) -> io::Result<NetworkState> {
        let mut state = self.links()?;
        self.addresses(&mut state)?;
        self.defaults(&mut state)?;
        Ok(state)
    }

    fn path(&mut self, question: Question) -> io::Result<Option<Path>> {
        let to = sockaddr(question.to);
        let from = question.from.map(sockaddr);
        let index = question.interface.map_or(0, |index| index.0);
        let from = from.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let (mut row, mut source) = (MIB_IPFORWARD_ROW2::default(), SOCKADDR_INET::default());
        // SAFETY: all pointers are to live structures of their types, or null where the call allows that; the last two are writable.
        let status = unsafe {
            GetBestRoute2(std::ptr::null(), index, from, &raw const to, 0, &raw mut row, &raw mut source)
        };
        match status {
            NO_ERROR => Ok(Some(mib::path(&route(&row), question.to))),
            ERROR_NOT_FOUND | ERROR_FILE_NOT_FOUND | ERROR_NETWORK_UNREACHABLE | ERROR_HOST_UNREACHABLE => {
                Ok(None)
            }
            _ => Err(io::Error::from_raw_os_error(status.cast_signed())),
        }
    }

    fn clocks(&self) -> Clocks {
        let mut time = FILETIME::default();
        // SAFETY: the pointer is to a live structure.
        unsafe { GetSystemTimeAsFileTime(&raw mut time) };
        let wall = u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
        // SAFETY: the call takes nothing.
        let ticks = Duration::from_millis(unsafe { GetTickCount64() });
        let mut awake = 0;
        // SAFETY: the pointer is to a live number; the call fails for none but a null pointer.
        unsafe { QueryUnbiasedInterruptTime(&raw mut awake) };
        let hundred_nanoseconds = |count| Duration::from_micros(count / 10);
        mib::clocks(hundred_nanoseconds(wall), ticks, hundred_nanoseconds(awake))
    }
}

// ---- the system ----

fn checked(status: u32) -> io::Result<()> {
    match status {
        NO_ERROR => Ok(()),
        _ => Err(io::Error::from_raw_os_error(status.cast_signed())),
    }
}

/// A table that the system has allocated: how many rows there are, and the rows.
#[derive(Debug)]
struct Table<R> {
    count: *const u32,
    /// The form of all MIB_..._TABLE2: the first row stands where its alignment puts it behind the number.
    first: *const R,
}

impl<R> Table<R> {
    /// Reads a table of such rows by `get`, which writes where it is.
    fn read(get: impl Fn(*mut *mut c_void) -> u32) -> io::Result<Table<R>> {
        let mut table: *mut c_void = std::ptr::null_mut();
        checked(get(&raw mut table))?;
        if table.is_null() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let offset = size_of::<u32>().next_multiple_of(align_of::<R>());
        Ok(Table { count: table.cast(), first: table.cast::<u8>().wrapping_add(offset).cast() })
    }

    fn rows(&self) -> &[R] {
        // SAFETY: the system has filled as many rows as it says, which stay until the table is freed.
        unsafe { std::slice::from_raw_parts(self.first, *self.count as usize) }
    }
}

impl<R> Drop for Table<R> {
    fn drop(&mut self) {
        // SAFETY: the system has allocated it, and nobody refers to its rows any more.
        unsafe { FreeMibTable(self.count.cast()) };
    }
}

/// The octets of an address structure.
fn octets(addr: &SOCKADDR_INET) -> [u8; 28] {
    // SAFETY: it is 28 octets, in all of which the system has written numbers, and any octets are a value of the array.
    unsafe { std::mem::transmute_copy(addr) }
}

fn sockaddr(addr: std::net::IpAddr) -> SOCKADDR_INET {
    // SAFETY: the structure is 28 octets of numbers, of which any are a value.
    unsafe { std::mem::transmute(mib::socket_address(addr)) }
}

fn route(row: &MIB_IPFORWARD_ROW2) -> Route {
    Route {
        interface: row.InterfaceIndex,
        to: octets(&row.DestinationPrefix.Prefix),
        prefix: row.DestinationPrefix.PrefixLength,
        next_hop: octets(&row.NextHop),
        metric: row.Metric,
        loopback: row.Loopback,
    }
}

/// The metric of the interface of a route; 0 where the system does not tell, since all others are compared with it alike.
fn metric(row: &MIB_IPFORWARD_ROW2, v6: bool) -> u32 {
    let family: ADDRESS_FAMILY = if v6 { AF_INET6 } else { AF_INET };
    let mut entry = MIB_IPINTERFACE_ROW {
        Family: family,
        InterfaceLuid: row.InterfaceLuid,
        InterfaceIndex: row.InterfaceIndex,
        ..MIB_IPINTERFACE_ROW::default()
    };
    // SAFETY: the pointer is to a live structure, whose family and interface are set.
    match unsafe { GetIpInterfaceEntry(&raw mut entry) } {
        NO_ERROR => entry.Metric,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor() -> SystemMonitor {
        SystemMonitor::new(Own { device: "ztun-none".into(), protocol: 0 }).unwrap()
    }

    /// Wine 8.0 has no GetIpInterfaceEntry.
    #[test]
    fn on_windows_the_machines_network_can_be_read() {
        let mut monitor = monitor();
        let state = monitor.state().unwrap();
        assert!(state.has_address(Ipv4Addr::LOCALHOST.into()), "{state:?}");
        let home = state.interface_of(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert!(
            state.interfaces.iter().any(|interface| interface.index == home && !interface.name.is_empty())
        );
        for route in &state.defaults {
            assert!(state.interfaces.iter().any(|interface| interface.index == route.interface));
        }
    }

    #[test]
    fn what_a_callback_tells_is_drained_once_and_rings_once() {
        let mut monitor = monitor();
        let _before = monitor.drain().unwrap();
        let row = MIB_IPFORWARD_ROW2 { InterfaceIndex: 77, ..MIB_IPFORWARD_ROW2::default() };
        let context = Arc::as_ptr(&monitor.shared).cast();
        for _ in 0..3 {
            // SAFETY: the context is the monitor's, which lives, and the row too.
            unsafe { route_changed(context, &raw const row, 0) };
        }
        // Ours, which goes.
        monitor.shared.own.store(78, Ordering::Relaxed);
        // SAFETY: as above; without a row it is nobody's in particular.
        unsafe { interface_changed(context, std::ptr::null(), 2) };
        let news = monitor.drain().unwrap();
        assert!(news.routes && news.state && news.woke && !news.own, "{news:?}");
        assert_eq!(monitor.bell.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(monitor.shared.told.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_clocks_go_on() {
        let monitor = monitor();
        let (first, second) = (monitor.clocks(), monitor.clocks());
        assert!(first.boot > Duration::ZERO && second.boot >= first.boot && second.wall > Duration::ZERO);
    }
}
