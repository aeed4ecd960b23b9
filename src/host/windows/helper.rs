//! The IP Helper: the machine's interfaces, addresses, routes and sockets. The only file that calls it for them; what goes in and comes out is
//! [`rows`](super::rows).

use super::octets::wide;
use super::rows::{
    self, AddressRow, InterfaceRow, RouteRow, SeenAddress, SeenInterface, SeenRoute, SeenSocket,
    interface_query,
};
use crate::host::Outcome;
use crate::host::want::Family;
use std::io;
use windows_sys::Win32::Foundation::{
    ERROR_FILE_NOT_FOUND, ERROR_INSUFFICIENT_BUFFER, ERROR_INVALID_NAME, ERROR_INVALID_PARAMETER,
    ERROR_NOT_FOUND, NO_ERROR, WIN32_ERROR,
};
use windows_sys::Win32::NetworkManagement::IpHelper::{
    ConvertInterfaceAliasToLuid, ConvertInterfaceLuidToGuid, ConvertInterfaceLuidToIndex,
    CreateIpForwardEntry2, CreateUnicastIpAddressEntry, DeleteIpForwardEntry2, DeleteUnicastIpAddressEntry,
    FreeMibTable, GetExtendedTcpTable, GetExtendedUdpTable, GetIpForwardEntry2, GetIpForwardTable2,
    GetIpInterfaceEntry, GetIpInterfaceTable, GetUnicastIpAddressTable, MIB_TCPROW_LH, SetIpInterfaceEntry,
    SetTcpEntry, TCP_TABLE_OWNER_PID_ALL, UDP_TABLE_OWNER_PID,
};
use windows_sys::Win32::NetworkManagement::Ndis::NET_LUID_LH;
use windows_sys::Win32::Networking::WinSock::{AF_INET, AF_INET6, AF_UNSPEC};
use windows_sys::core::GUID;

/// What the system has answered, as an error unless it is none.
pub(super) fn check(code: WIN32_ERROR) -> io::Result<()> {
    if code == NO_ERROR { Ok(()) } else { Err(error(code)) }
}

/// An error of the system by its code.
pub(super) fn error(code: WIN32_ERROR) -> io::Error {
    io::Error::from_raw_os_error(code.cast_signed())
}

/// Deleting what is not there is no error.
fn deleted(code: WIN32_ERROR) -> io::Result<Outcome> {
    match code {
        // An interface that is gone is not found, or no parameter.
        ERROR_NOT_FOUND | ERROR_FILE_NOT_FOUND | ERROR_INVALID_PARAMETER => Ok(Outcome::Already),
        code => check(code).map(|()| Outcome::Done),
    }
}

/// The LUID of the interface `name`; `None` when there is none of that name.
pub(super) fn luid_of(name: &str) -> io::Result<Option<u64>> {
    let (name, mut luid) = (wide(name), NET_LUID_LH { Value: 0 });
    // SAFETY: a text that ends with 0, and a LUID to write to.
    let code = unsafe { ConvertInterfaceAliasToLuid(name.as_ptr(), &raw mut luid) };
    match code {
        ERROR_INVALID_NAME | ERROR_NOT_FOUND | ERROR_FILE_NOT_FOUND | ERROR_INVALID_PARAMETER => Ok(None),
        // SAFETY: all octets of the union were written.
        code => check(code).map(|()| Some(unsafe { luid.Value })),
    }
}

/// The index of an interface.
pub(super) fn index_of(luid: u64) -> io::Result<u32> {
    let (luid, mut index) = (NET_LUID_LH { Value: luid }, 0);
    // SAFETY: a LUID to read, and a number to write to.
    check(unsafe { ConvertInterfaceLuidToIndex(&raw const luid, &raw mut index) })?;
    Ok(index)
}

/// The GUID of an interface.
pub(super) fn guid_of(luid: u64) -> io::Result<GUID> {
    let (luid, mut guid) = (NET_LUID_LH { Value: luid }, GUID::from_u128(0));
    // SAFETY: a LUID to read, and a GUID to write to.
    check(unsafe { ConvertInterfaceLuidToGuid(&raw const luid, &raw mut guid) })?;
    Ok(guid)
}

/// The octets of a table that the system allocates: as many rows of `row` octets as it counts, after the 8 that the count has.
///
/// # Safety
///
/// `table` is such a table, or null.
unsafe fn take_table<T>(table: *mut T, row: usize) -> Vec<u8> {
    if table.is_null() {
        return Vec::new();
    }
    // SAFETY: a table begins with the number of its rows.
    let count = unsafe { table.cast::<u32>().read() };
    let size =
        usize::try_from(count).ok().and_then(|count| count.checked_mul(row)).map_or(0, |size| size + 8);
    // SAFETY: it has that many rows.
    let octets = unsafe { core::slice::from_raw_parts(table.cast::<u8>(), size) }.to_vec();
    // SAFETY: it came from the system and is not used any more.
    unsafe { FreeMibTable(table.cast()) };
    octets
}

/// All interfaces.
pub(super) fn interfaces() -> io::Result<Vec<SeenInterface>> {
    let mut table = core::ptr::null_mut();
    // SAFETY: a pointer to write to.
    check(unsafe { GetIpInterfaceTable(AF_UNSPEC, &raw mut table) })?;
    // SAFETY: the system has just made it.
    Ok(rows::interfaces(&unsafe { take_table(table, size_of::<InterfaceRow>()) }))
}

/// All addresses of the machine.
pub(super) fn addresses() -> io::Result<Vec<SeenAddress>> {
    let mut table = core::ptr::null_mut();
    // SAFETY: a pointer to write to.
    check(unsafe { GetUnicastIpAddressTable(AF_UNSPEC, &raw mut table) })?;
    // SAFETY: the system has just made it.
    Ok(rows::addresses(&unsafe { take_table(table, size_of::<AddressRow>()) }))
}

/// All routes.
pub(super) fn routes() -> io::Result<Vec<SeenRoute>> {
    let mut table = core::ptr::null_mut();
    // SAFETY: a pointer to write to.
    check(unsafe { GetIpForwardTable2(AF_UNSPEC, &raw mut table) })?;
    // SAFETY: the system has just made it.
    Ok(rows::routes(&unsafe { take_table(table, size_of::<RouteRow>()) }))
}

/// The settings of an interface in one family, and the row that [`set_interface`] takes back; `None` when it has none.
pub(super) fn interface(luid: u64, family: Family) -> io::Result<Option<(InterfaceRow, SeenInterface)>> {
    let mut row = interface_query(luid, family);
    // SAFETY: a row of the size and alignment that the system expects.
    let code = unsafe { GetIpInterfaceEntry(row.as_mut_ptr()) };
    match code {
        ERROR_NOT_FOUND | ERROR_FILE_NOT_FOUND => Ok(None),
        code => {
            check(code)?;
            Ok(rows::interface(row.octets()).map(|seen| (row, seen)))
        }
    }
}

/// Sets what a row says of an interface.
pub(super) fn set_interface(mut row: InterfaceRow) -> io::Result<()> {
    // SAFETY: a row of the size and alignment that the system expects.
    check(unsafe { SetIpInterfaceEntry(row.as_mut_ptr()) })
}

/// Adds an address.
pub(super) fn add_address(row: &AddressRow) -> io::Result<()> {
    // SAFETY: a row of the size and alignment that the system expects.
    check(unsafe { CreateUnicastIpAddressEntry(row.as_ptr()) })
}

/// Deletes an address.
pub(super) fn delete_address(row: &AddressRow) -> io::Result<Outcome> {
    // SAFETY: a row of the size and alignment that the system expects.
    deleted(unsafe { DeleteUnicastIpAddressEntry(row.as_ptr()) })
}

/// Adds a route.
pub(super) fn add_route(row: &RouteRow) -> io::Result<()> {
    // SAFETY: a row of the size and alignment that the system expects.
    check(unsafe { CreateIpForwardEntry2(row.as_ptr()) })
}

/// Deletes a route.
pub(super) fn delete_route(row: &RouteRow) -> io::Result<Outcome> {
    // SAFETY: a row of the size and alignment that the system expects.
    deleted(unsafe { DeleteIpForwardEntry2(row.as_ptr()) })
}

/// The metric of a route; `None` when it is not there.
pub(super) fn route_metric(row: &RouteRow) -> io::Result<Option<u32>> {
    let mut row = *row;
    // SAFETY: a row of the size and alignment that the system expects.
    match deleted(unsafe { GetIpForwardEntry2(row.as_mut_ptr()) })? {
        Outcome::Done => Ok(rows::route(row.octets()).map(|route| route.metric)),
        Outcome::Already => Ok(None),
    }
}

fn number(family: Family) -> u32 {
    match family {
        Family::V4 => AF_INET.into(),
        Family::V6 => AF_INET6.into(),
    }
}

/// A table that the system writes into a buffer of ours, once that is large enough.
fn fill(mut ask: impl FnMut(*mut core::ffi::c_void, *mut u32) -> WIN32_ERROR) -> io::Result<Vec<u8>> {
    /// The table grows between two calls; not for ever.
    const TRIES: usize = 16;
    let mut buffer: Vec<u64> = vec![0; 2048];
    for _ in 0..TRIES {
        let mut size = u32::try_from(buffer.len() * 8).map_err(io::Error::other)?;
        match ask(buffer.as_mut_ptr().cast(), &raw mut size) {
            NO_ERROR => return Ok(buffer.iter().flat_map(|word| word.to_ne_bytes()).collect()),
            ERROR_INSUFFICIENT_BUFFER => {
                let wanted = usize::try_from(size).map_err(io::Error::other)?.div_ceil(8);
                buffer.resize(wanted.max(buffer.len()).saturating_mul(2), 0);
            }
            code => return Err(error(code)),
        }
    }
    Err(error(ERROR_INSUFFICIENT_BUFFER))
}

/// The TCP sockets of the machine, and whose they are.
pub(super) fn tcp_sockets(family: Family) -> io::Result<Vec<SeenSocket>> {
    let table = fill(|buffer, size| {
        // SAFETY: the buffer has as many octets as the size says.
        unsafe { GetExtendedTcpTable(buffer, size, 0, number(family), TCP_TABLE_OWNER_PID_ALL, 0) }
    })?;
    Ok(rows::tcp_sockets(family, &table))
}

/// The UDP sockets of the machine, and whose they are.
pub(super) fn udp_sockets(family: Family) -> io::Result<Vec<SeenSocket>> {
    let table = fill(|buffer, size| {
        // SAFETY: the buffer has as many octets as the size says.
        unsafe { GetExtendedUdpTable(buffer, size, 0, number(family), UDP_TABLE_OWNER_PID, 0) }
    })?;
    Ok(rows::udp_sockets(family, &table))
}

/// Closes a TCP connection of IPv4.
pub(super) fn close_connection(row: &rows::ConnectionRow) -> io::Result<()> {
    // SAFETY: a row of the size and alignment that the system expects.
    check(unsafe { SetTcpEntry(row.as_ptr::<MIB_TCPROW_LH>()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn the_sockets_of_this_machine_are_listed_with_both_their_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let stream = TcpStream::connect(there).unwrap();
        let here = stream.local_addr().unwrap();
        let seen = tcp_sockets(Family::V4).unwrap();
        assert!(seen.iter().any(|socket| socket.local == there && socket.listens));
        assert!(seen.iter().any(|socket| (socket.local, socket.remote) == (here, there) && !socket.listens));
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let bound = socket.local_addr().unwrap();
        assert!(udp_sockets(Family::V6).unwrap().iter().any(|socket| socket.local == bound));
    }

    #[test]
    fn an_interface_is_found_by_its_name_or_is_none() {
        assert_eq!(luid_of("no interface of this name").unwrap(), None);
        let loopback = addresses().unwrap().into_iter().find(|seen| seen.address.addr.is_loopback()).unwrap();
        assert!(index_of(loopback.luid).unwrap() > 0);
    }

    #[test]
    fn on_windows_interfaces_and_routes_are_listed() {
        let interfaces = interfaces().unwrap();
        assert!(interfaces.iter().any(|seen| seen.family == Family::V4 && seen.settings.mtu > 0));
        let routes = routes().unwrap();
        assert!(routes.iter().any(|route| route.destination.addr.is_loopback()));
        let one = interfaces[0];
        let (_, again) = interface(one.luid, one.family).unwrap().unwrap();
        assert_eq!((again.luid, again.settings), (one.luid, one.settings));
    }
}
