"""exports.py ARCHIVE HEADER: whether a static library has every function of a C header, for the machine that `file` cannot tell: what it was built for is written
to standard output.

An archive's first member is its table of symbols, in the form of ELF (`/`) or of Mach-O (`__.SYMDEF`); either way the names stand in it, each ended
by NUL.
"""

import pathlib
import re
import struct
import sys


def members(octets):
    """Name and content of each member of an ar archive."""
    if octets[:8] != b"!<arch>\n":
        sys.exit("no archive")
    place = 8
    while place + 60 <= len(octets):
        name = octets[place : place + 16].rstrip()
        size = int(octets[place + 48 : place + 58])
        content = octets[place + 60 : place + 60 + size]
        # BSD writes a long name before the content, and its length as the name.
        if name.startswith(b"#1/"):
            length = int(name[3:])
            name, content = content[:length].rstrip(b"\0"), content[length:]
        yield name, content
        place += 60 + size + size % 2


def machine(content):
    """What an object file is for; nothing for what is none."""
    if content[:6] == b"\x7fELF\2\1":
        return {183: "ELF aarch64", 62: "ELF x86_64"}.get(struct.unpack_from("<H", content, 18)[0], "ELF")
    if content[:4] == b"\xcf\xfa\xed\xfe":
        return {0x0100000C: "Mach-O aarch64", 0x01000007: "Mach-O x86_64"}.get(struct.unpack_from("<I", content, 4)[0], "Mach-O")
    return None


def main():
    archive, header = map(pathlib.Path, sys.argv[1:])
    all_members = list(members(archive.read_bytes()))
    table = all_members[0]
    if table[0] not in (b"/", b"/SYM64/") and not table[0].startswith(b"__.SYMDEF"):
        sys.exit(f"{archive} has no table of symbols: {table[0]}")
    # Mach-O puts an underscore before what C calls by name.
    defined = set(re.findall(rb"(?:^|[^\w])_?(ztun_\w+)(?=\0)", table[1]))
    declared = set(re.findall(rb"\b(ztun_\w+)\(", header.read_bytes()))
    missing = declared - defined
    if not declared or missing:
        sys.exit(f"{archive} has not {sorted(missing)}")
    kinds = {kind for _, content in all_members if (kind := machine(content))}
    print(f"{len(declared)} functions,", ", ".join(sorted(kinds)))


main()
