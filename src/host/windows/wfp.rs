//! The Windows Filtering Platform: puts up and takes down what [`guard`](super::guard) describes.

use super::guard::{Compared, Filter, Guard, Kind, Value, Verdict, layer_key};
use super::helper::{check, error};
use super::octets::wide;
use crate::host::Outcome;
use std::io;
use std::os::windows::ffi::OsStrExt;
use windows_sys::Win32::Foundation::{
    FWP_E_FILTER_NOT_FOUND, FWP_E_PROVIDER_NOT_FOUND, FWP_E_SUBLAYER_NOT_FOUND, HANDLE,
};
use windows_sys::Win32::NetworkManagement::WindowsFilteringPlatform::{
    FWP_ACTION_BLOCK, FWP_ACTION_PERMIT, FWP_BYTE_BLOB, FWP_BYTE_BLOB_TYPE, FWP_CONDITION_VALUE0,
    FWP_CONDITION_VALUE0_0, FWP_UINT8, FWP_UINT16, FWP_UINT32, FWP_UINT64, FWP_V4_ADDR_AND_MASK,
    FWP_V4_ADDR_MASK, FWP_V6_ADDR_AND_MASK, FWP_V6_ADDR_MASK, FWP_VALUE0, FWP_VALUE0_0, FWPM_ACTION0,
    FWPM_DISPLAY_DATA0, FWPM_FILTER_CONDITION0, FWPM_FILTER0, FWPM_PROVIDER0, FWPM_SESSION_FLAG_DYNAMIC,
    FWPM_SESSION0, FWPM_SUBLAYER0, FwpmEngineClose0, FwpmEngineOpen0, FwpmFilterAdd0, FwpmFilterDeleteByKey0,
    FwpmFilterGetByKey0, FwpmFreeMemory0, FwpmGetAppIdFromFileName0, FwpmProviderAdd0,
    FwpmProviderDeleteByKey0, FwpmSubLayerAdd0, FwpmSubLayerDeleteByKey0, FwpmSubLayerGetByKey0,
    FwpmTransactionAbort0, FwpmTransactionBegin0, FwpmTransactionCommit0,
};
use windows_sys::Win32::System::Rpc::RPC_C_AUTHN_WINNT;
use windows_sys::core::GUID;

/// What the system's programs call it.
const NAME: &str = "ztun";

/// Before the sublayers of others; where several have the same weight, all of them are asked all the same.
const SUBLAYER_WEIGHT: u16 = u16::MAX;

/// Nobody serves the calls: there is no Base Filtering Engine (winerror.h).
const EPT_S_NOT_REGISTERED: i32 = 1753;

/// The guards of this machine. Those that do not outlive the process are gone when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Wfp {
    session: Option<Engine>,
}

impl Wfp {
    /// Puts a guard up, in the place of another of its kind if there is one: both in one step.
    pub(super) fn set(&mut self, guard: &Guard) -> io::Result<()> {
        if guard.kind.outlives_process() {
            return Engine::open(false)?.replace(guard.kind, Some(guard));
        }
        let engine = match self.session.take() {
            Some(engine) => engine,
            None => Engine::open(true)?,
        };
        self.session.insert(engine).replace(guard.kind, Some(guard))
    }

    /// Takes a guard down, unless another one has taken its place. One of another process's session is that process's, and goes with it: the system lets
    /// nobody else take it down.
    pub(super) fn clear(&mut self, guard: &Guard) -> io::Result<Outcome> {
        if !guard.kind.outlives_process() {
            return self.session.as_ref().map_or(Ok(Outcome::Already), |engine| engine.clear(guard));
        }
        self.others()?.map_or(Ok(Outcome::Already), |engine| engine.clear(guard))
    }

    /// The guards that are up: those of this process, and one that outlives processes, whoever put it there.
    pub(super) fn shown(&self) -> io::Result<Vec<Guard>> {
        let mut guards = Vec::new();
        let others = self.others()?;
        for kind in Kind::ALL {
            let engine = if kind.outlives_process() { others.as_ref() } else { self.session.as_ref() };
            guards.extend(engine.map(|engine| engine.get(kind)).transpose()?.flatten());
        }
        Ok(guards)
    }

    /// Where guards are that are no process's; `None` where there is no Base Filtering Engine, and so no guard either.
    fn others(&self) -> io::Result<Option<Engine>> {
        match Engine::open(false) {
            Ok(engine) => Ok(Some(engine)),
            Err(error) if error.raw_os_error() == Some(EPT_S_NOT_REGISTERED) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A session with the Base Filtering Engine.
#[derive(Debug)]
struct Engine(HANDLE);

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: the session is open, and nobody else has it.
        let code = unsafe { FwpmEngineClose0(self.0) };
        if code != 0 {
            log::debug!("FwpmEngineClose0: {}", error(code));
        }
    }
}

/// Deleting what is not there is no error: whether it was.
fn deleted(code: u32) -> io::Result<bool> {
    let absent = [FWP_E_FILTER_NOT_FOUND, FWP_E_SUBLAYER_NOT_FOUND, FWP_E_PROVIDER_NOT_FOUND];
    if absent.contains(&code.cast_signed()) { Ok(false) } else { check(code).map(|()| true) }
}

/// The key of the filter `number` of a guard, or with 0 of its sublayer.
fn key(kind: Kind, number: usize) -> GUID {
    // No guard has as many filters as the keys have room for.
    GUID::from_u128(kind.key() | (number & 0xffff) as u128)
}

impl Engine {
    /// With `dynamic`, what is added in this session goes with it.
    fn open(dynamic: bool) -> io::Result<Engine> {
        let mut name = wide(NAME);
        let mut session = FWPM_SESSION0::default();
        session.displayData.name = name.as_mut_ptr();
        if dynamic {
            session.flags = FWPM_SESSION_FLAG_DYNAMIC;
        }
        let (null, mut handle) = (core::ptr::null(), core::ptr::null_mut());
        // SAFETY: null stands for this machine and this user; the session's text lives until the call returns, and there is a handle to write to.
        check(unsafe {
            FwpmEngineOpen0(null, RPC_C_AUTHN_WINNT, core::ptr::null(), &raw const session, &raw mut handle)
        })?;
        Ok(Engine(handle))
    }

    fn clear(&self, guard: &Guard) -> io::Result<Outcome> {
        if self.get(guard.kind)?.is_none_or(|found| !guard.covers(&found)) {
            return Ok(Outcome::Already);
        }
        self.replace(guard.kind, None)?;
        Ok(Outcome::Done)
    }

    /// The guard of this kind that is up. One that is not whole, or another version's, is one of which nothing is known.
    fn get(&self, kind: Kind) -> io::Result<Option<Guard>> {
        let (key_of_it, mut found) = (key(kind, 0), core::ptr::null_mut::<FWPM_SUBLAYER0>());
        // SAFETY: a key, and a pointer to write to.
        if !deleted(unsafe { FwpmSubLayerGetByKey0(self.0, &raw const key_of_it, &raw mut found) })? {
            return Ok(None);
        }
        // SAFETY: the system has just given a sublayer, whose text is null or ends with 0.
        let text = unsafe { text_of((*found).displayData.description) };
        // SAFETY: it came from the system and is not used any more.
        unsafe { FwpmFreeMemory0((&raw mut found).cast()) };
        let words: Vec<&str> = text.split(' ').collect();
        let guard = Guard::parse(&words).filter(|guard| guard.kind == kind);
        let Some(guard) = guard else { return Ok(Some(Guard::unknown(kind))) };
        for number in 1..=guard.filters().len() {
            let (key_of_it, mut found) = (key(kind, number), core::ptr::null_mut::<FWPM_FILTER0>());
            // SAFETY: a key, and a pointer to write to.
            if !deleted(unsafe { FwpmFilterGetByKey0(self.0, &raw const key_of_it, &raw mut found) })? {
                return Ok(Some(Guard::unknown(kind)));
            }
            // SAFETY: it came from the system and is not used.
            unsafe { FwpmFreeMemory0((&raw mut found).cast()) };
        }
        Ok(Some(guard))
    }

    /// Takes down what is there of this kind, and puts up `guard`: all of it or nothing.
    fn replace(&self, kind: Kind, guard: Option<&Guard>) -> io::Result<()> {
        // SAFETY: a session without a transaction.
        check(unsafe { FwpmTransactionBegin0(self.0, 0) })?;
        let done = self.take_down(kind).and_then(|()| guard.map_or(Ok(()), |guard| self.put_up(guard)));
        if let Err(refused) = done {
            // SAFETY: the transaction was begun.
            let code = unsafe { FwpmTransactionAbort0(self.0) };
            if code != 0 {
                log::debug!("FwpmTransactionAbort0: {}", error(code));
            }
            return Err(refused);
        }
        // SAFETY: the transaction was begun.
        check(unsafe { FwpmTransactionCommit0(self.0) })
    }

    fn take_down(&self, kind: Kind) -> io::Result<()> {
        // They were added in one transaction, so their numbers have no gap; one that somebody deleted does not hide those behind it.
        let mut missing = 0;
        for number in 1..=0xffff_usize {
            let key = key(kind, number);
            // SAFETY: a key.
            if !deleted(unsafe { FwpmFilterDeleteByKey0(self.0, &raw const key) })? {
                missing += 1;
                if missing > LARGEST_GAP {
                    break;
                }
            }
        }
        let key = key(kind, 0);
        // SAFETY: a key.
        deleted(unsafe { FwpmSubLayerDeleteByKey0(self.0, &raw const key) })?;
        // SAFETY: a key.
        deleted(unsafe { FwpmProviderDeleteByKey0(self.0, &raw const key) })?;
        Ok(())
    }

    fn put_up(&self, guard: &Guard) -> io::Result<()> {
        let mut provider_key = key(guard.kind, 0);
        let (mut name, mut text) = (wide(NAME), wide(&guard.to_string()));
        let display = FWPM_DISPLAY_DATA0 { name: name.as_mut_ptr(), description: text.as_mut_ptr() };
        let provider =
            FWPM_PROVIDER0 { providerKey: provider_key, displayData: display, ..FWPM_PROVIDER0::default() };
        // SAFETY: the provider's texts live until the call returns; null is the descriptor that it gets by itself.
        check(unsafe { FwpmProviderAdd0(self.0, &raw const provider, core::ptr::null_mut()) })?;
        let sublayer = FWPM_SUBLAYER0 {
            subLayerKey: provider_key,
            displayData: display,
            providerKey: &raw mut provider_key,
            weight: SUBLAYER_WEIGHT,
            ..FWPM_SUBLAYER0::default()
        };
        // SAFETY: as above, and the same for the key.
        check(unsafe { FwpmSubLayerAdd0(self.0, &raw const sublayer, core::ptr::null_mut()) })?;
        let program = own_program()?;
        for (number, filter) in (1..).zip(guard.filters()) {
            self.add(guard.kind, number, &filter, &program)?;
        }
        Ok(())
    }

    fn add(&self, kind: Kind, number: usize, filter: &Filter, program: &[u8]) -> io::Result<()> {
        let mut provider_key = key(kind, 0);
        let mut compared: Vec<Compared> =
            filter.conditions.iter().map(|condition| condition.compared(program)).collect();
        // What conditions lead to: it stays where it is until the call returns.
        let mut held: Vec<Held> = compared.iter_mut().map(|compared| Held::of(&mut compared.value)).collect();
        let mut conditions: Vec<FWPM_FILTER_CONDITION0> = Vec::with_capacity(held.len());
        for (compared, held) in compared.iter().zip(&mut held) {
            conditions.push(FWPM_FILTER_CONDITION0 {
                fieldKey: GUID::from_u128(compared.field),
                matchType: compared.how,
                conditionValue: held.value(),
            });
        }
        let (mut name, mut text) = (wide(NAME), wide(&filter.to_string()));
        let mut wanted = FWPM_FILTER0 {
            filterKey: key(kind, number),
            displayData: FWPM_DISPLAY_DATA0 { name: name.as_mut_ptr(), description: text.as_mut_ptr() },
            providerKey: &raw mut provider_key,
            layerKey: GUID::from_u128(layer_key(filter.layer)),
            subLayerKey: key(kind, 0),
            weight: FWP_VALUE0 { r#type: FWP_UINT8, Anonymous: FWP_VALUE0_0 { uint8: filter.weight } },
            numFilterConditions: u32::try_from(conditions.len()).map_err(io::Error::other)?,
            filterCondition: conditions.as_mut_ptr(),
            ..FWPM_FILTER0::default()
        };
        let action = match filter.verdict {
            Verdict::Permit => FWP_ACTION_PERMIT,
            Verdict::Block => FWP_ACTION_BLOCK,
        };
        wanted.action = FWPM_ACTION0 { r#type: action, ..FWPM_ACTION0::default() };
        let mut id = 0;
        // SAFETY: everything that the filter leads to lives until the call returns; null is the descriptor that it gets by itself.
        check(unsafe { FwpmFilterAdd0(self.0, &raw const wanted, core::ptr::null_mut(), &raw mut id) })
    }
}

/// How many filters of a guard may be missing before the rest is not looked for.
const LARGEST_GAP: usize = 16;

/// A value of a condition, where the system finds it.
enum Held {
    Number(FWP_CONDITION_VALUE0),
    Wide(Box<u64>),
    Blob(Box<FWP_BYTE_BLOB>),
    V4(Box<FWP_V4_ADDR_AND_MASK>),
    V6(Box<FWP_V6_ADDR_AND_MASK>),
}

impl Held {
    fn of(value: &mut Value) -> Held {
        let number = |kind, value| Held::Number(FWP_CONDITION_VALUE0 { r#type: kind, Anonymous: value });
        match value {
            Value::U8(uint8) => number(FWP_UINT8, FWP_CONDITION_VALUE0_0 { uint8: *uint8 }),
            Value::U16(uint16) => number(FWP_UINT16, FWP_CONDITION_VALUE0_0 { uint16: *uint16 }),
            Value::U32(uint32) => number(FWP_UINT32, FWP_CONDITION_VALUE0_0 { uint32: *uint32 }),
            Value::U64(value) => Held::Wide(Box::new(*value)),
            Value::Blob(data) => {
                // The name of a file fits.
                let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
                Held::Blob(Box::new(FWP_BYTE_BLOB { size, data: data.as_mut_ptr() }))
            }
            Value::V4 { addr, mask } => Held::V4(Box::new(FWP_V4_ADDR_AND_MASK { addr: *addr, mask: *mask })),
            Value::V6 { addr, prefix } => {
                Held::V6(Box::new(FWP_V6_ADDR_AND_MASK { addr: *addr, prefixLength: *prefix }))
            }
        }
    }

    /// What leads to it.
    fn value(&mut self) -> FWP_CONDITION_VALUE0 {
        let (kind, value) = match self {
            Held::Number(number) => return *number,
            Held::Wide(value) => (FWP_UINT64, FWP_CONDITION_VALUE0_0 { uint64: &raw mut **value }),
            Held::Blob(blob) => (FWP_BYTE_BLOB_TYPE, FWP_CONDITION_VALUE0_0 { byteBlob: &raw mut **blob }),
            Held::V4(net) => (FWP_V4_ADDR_MASK, FWP_CONDITION_VALUE0_0 { v4AddrMask: &raw mut **net }),
            Held::V6(net) => (FWP_V6_ADDR_MASK, FWP_CONDITION_VALUE0_0 { v6AddrMask: &raw mut **net }),
        };
        FWP_CONDITION_VALUE0 { r#type: kind, Anonymous: value }
    }
}

/// This program as the platform knows it.
fn own_program() -> io::Result<Vec<u8>> {
    let path: Vec<u16> = std::env::current_exe()?.as_os_str().encode_wide().chain([0]).collect();
    let mut blob = core::ptr::null_mut::<FWP_BYTE_BLOB>();
    // SAFETY: a text that ends with 0, and a pointer to write to.
    check(unsafe { FwpmGetAppIdFromFileName0(path.as_ptr(), &raw mut blob) })?;
    // SAFETY: the system has just given as many octets as the blob says.
    let program = unsafe {
        let size = usize::try_from((*blob).size).unwrap_or(0);
        core::slice::from_raw_parts((*blob).data, size).to_vec()
    };
    // SAFETY: it came from the system and is not used any more.
    unsafe { FwpmFreeMemory0((&raw mut blob).cast()) };
    Ok(program)
}

/// A text of the system's.
///
/// # Safety
///
/// `text` is null or ends with 0.
unsafe fn text_of(text: *const u16) -> String {
    if text.is_null() {
        return String::new();
    }
    let mut length = 0;
    // SAFETY: up to the 0 it may be read.
    while unsafe { text.add(length).read() } != 0 {
        length += 1;
    }
    // SAFETY: as above.
    String::from_utf16_lossy(unsafe { core::slice::from_raw_parts(text, length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_where_its_condition_leads() {
        let mut value = Value::V4 { addr: 0x0a00_0000, mask: 0xff00_0000 };
        let mut held = Held::of(&mut value);
        let leads = held.value();
        assert_eq!(leads.r#type, FWP_V4_ADDR_MASK);
        // SAFETY: the type says which member it is, and what it leads to is held.
        let net = unsafe { *leads.Anonymous.v4AddrMask };
        assert_eq!((net.addr, net.mask), (0x0a00_0000, 0xff00_0000));
        let mut value = Value::Blob(vec![1, 2, 3]);
        let mut held = Held::of(&mut value);
        let leads = held.value();
        // SAFETY: as above.
        let blob = unsafe { *leads.Anonymous.byteBlob };
        // SAFETY: as many octets as it says are held.
        assert_eq!(unsafe { core::slice::from_raw_parts(blob.data, 3) }, [1, 2, 3]);
        assert_eq!(blob.size, 3);
    }

    #[test]
    fn filters_have_keys_that_count_from_their_sublayers() {
        let last = |number| key(Kind::KillSwitch, number).data4;
        assert_eq!(last(0)[6..], [0, 0]);
        assert_eq!(last(258)[6..], [1, 2]);
    }

    #[test]
    fn a_text_ends_at_its_zero() {
        let text = wide("names luid");
        // SAFETY: it ends with 0.
        assert_eq!(unsafe { text_of(text.as_ptr()) }, "names luid");
        // SAFETY: null is allowed.
        assert_eq!(unsafe { text_of(core::ptr::null()) }, "");
    }
}
