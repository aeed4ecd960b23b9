/* Stands in for bcryptprimitives.dll under wine 8.0, which has none: the one function that Rust's standard library takes from it. For tests alone. */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID octets, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE octets, SIZE_T length)
{
    return SystemFunction036(octets, (ULONG)length);
}
