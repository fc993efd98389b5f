"""The images that tests, benchmarks and the demo run: small, made here in a second, the same every time.

Each function adds one image to the OCI layout `layout` under `tag` and returns its reference for `architect run`.
"""

from __future__ import annotations

from pathlib import Path

from architect.testing.sample_layout import ImageFile, ImageSettings, directory, text, write_image
from architect.testing.sample_programs import (
    REPOSITORY,
    base_files,
    busybox_files,
    compile_static,
    package_files,
    program_files,
)

DEMO_SOURCES = REPOSITORY / "demo" / "image"
VERIFIER_SOURCES = REPOSITORY / "native" / "verify"
SSHD_PARTS = ("/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth")
"""Programs that sshd starts for a connection: from OpenSSH 9.8 on, and from 10.0 on."""
DEFAULT_SETTINGS = ImageSettings(entrypoint=("/bin/sh",))


def busybox_image(
    layout: Path,
    tag: str = "busybox",
    settings: ImageSettings = DEFAULT_SETTINGS,
    files: dict[str, ImageFile] | None = None,
) -> str:
    """A static busybox with all its applets (sh, nc, httpd, ping, dd, …), and the caller's own files."""
    return write_image(layout, tag, base_files() | busybox_files() | (files or {}), settings)


def debian_image(
    layout: Path,
    tag: str = "debian",
    packages: tuple[str, ...] = (),
    programs: tuple[str, ...] = ("bash", "coreutils", "sleep", "cat", "ls", "id", "env", "sha256sum"),
    settings: ImageSettings = DEFAULT_SETTINGS,
) -> str:
    """Programs and packages of this Debian machine, with their libraries, over a busybox for everything else."""
    named = tuple(name for name in programs if name != "coreutils")
    return write_image(layout, tag, base_files() | busybox_files() | package_files(*packages) | program_files(*named), settings)


def redis_image(layout: Path, tag: str = "redis") -> str:
    """redis on port 6379, open to all, appending every write to a file in /data; arguments after the image are its options."""
    files = base_files() | busybox_files() | program_files("redis-server", "redis-cli", "redis-benchmark")
    files["/data"] = directory()
    settings = ImageSettings(
        entrypoint=("/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"),
        cmd=("--appendonly", "yes", "--save", ""),
        working_dir="/data",
    )
    return write_image(layout, tag, files, settings)


def ssh_image(layout: Path, authorized_key: str, tag: str = "ssh") -> str:
    """OpenSSH's server on port 22: root may log in with the key whose public half is `authorized_key`; iperf3 and nc are there."""
    parts = [name for name in SSHD_PARTS if Path(name).exists()]
    files = base_files() | busybox_files() | program_files("sshd", *parts, "ssh-keygen", "iperf3", "bash")
    files["/etc/ssh/sshd_config"] = text(
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\nUsePAM no\nUseDNS no\n"
        "Subsystem sftp internal-sftp\nLogLevel VERBOSE\n"
    )
    files["/root"] = directory(0o700)
    files["/root/.ssh"] = directory(0o700)
    files["/root/.ssh/authorized_keys"] = text(authorized_key.strip() + "\n", 0o600)
    start = (
        "mkdir -p /run/sshd && chmod 755 /run/sshd && "
        "{ test -f /etc/ssh/ssh_host_ed25519_key || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; } && "
        "exec /usr/sbin/sshd -D -e"
    )
    return write_image(layout, tag, files, ImageSettings(entrypoint=("/bin/sh", "-c", start)))


def database_image(layout: Path, tag: str = "database") -> str:
    """redis on port 6379, sqlite on port 7000 and both verifiers, each with its data on the disk; arguments as `both`'s.

    redis acknowledges a write once it has called fsync. To sqlite goes SQL, a statement a line; it says each line again before the
    answer (it believes that it talks to a person: else it would keep its answers until it has many).
    """
    files = base_files() | busybox_files() | program_files("redis-server", "sqlite3") | _verifier_files()
    files["/data"] = directory()
    session = '#!/bin/sh\nexec sqlite3 -interactive -cmd \'.prompt "" ""\' /data/rows.db\n'
    files["/usr/bin/sql-session"] = text(session, 0o755)
    start = (
        "redis-server --bind 0.0.0.0 --protected-mode no --dir /data --appendonly yes --appendfsync always --save '' &\n"
        "nc -ll -p 7000 -e /usr/bin/sql-session &\n"
        'exec both "$@"'
    )
    files["/usr/bin/databases"] = text(f"#!/bin/sh\n{start}\n", 0o755)
    return write_image(layout, tag, files, ImageSettings(entrypoint=("/usr/bin/databases",), working_dir="/data"))


def verifier_image(layout: Path, tag: str = "verifier", command: tuple[str, ...] = ("memory-verify",)) -> str:
    """The memory and the disk verifier (native/verify) in a busybox; without arguments it runs `command`.

    `both` runs the two together and ends with the first that ends: `-- both "MEMORY OPTIONS" "DISK OPTIONS"`.
    """
    files = base_files() | busybox_files() | _verifier_files()
    return write_image(layout, tag, files, ImageSettings(cmd=command))


def witness_image(layout: Path, tag: str = "witness") -> str:
    """The witness (native/verify) on port 7000, TCP and UDP, with both verifiers at a low rate beside it."""
    start = (
        "memory-verify --size-mib 8 --rate-mib 0.5 --sweep-mib 1 & "
        "disk-verify --size-mib 2 --rate-mib 0.1 --sweep-mib 0.2 & "
        "exec witness"
    )
    files = base_files() | busybox_files() | _verifier_files()
    sources = (VERIFIER_SOURCES / "witness.c", VERIFIER_SOURCES / "pattern.c")
    files["/usr/bin/witness"] = ImageFile(compile_static("witness", sources), 0o755)
    files["/etc/witness"] = text(f"{tag}\n")  # another tag is another disk
    return write_image(layout, tag, files, ImageSettings(entrypoint=("/bin/sh", "-c", start)))


def demo_image(layout: Path, tag: str = "demo") -> str:
    """The demo's VM: AFL++ on a small target, and a service with streams, datagrams and a status line (demo/image)."""
    files = base_files() | busybox_files() | program_files("afl-fuzz")
    service = [DEMO_SOURCES / f"{name}.c" for name in ("service", "stream", "sha256", "fuzzer")]
    files["/demo/service"] = ImageFile(compile_static("service", service), 0o755)
    # Not afl-gcc-fast: Debian 12's plugin was built for a gcc that is newer by one letter of its version, and refuses ours.
    target = compile_static("target", (DEMO_SOURCES / "target.c",), "afl-clang-fast")
    files["/demo/target"] = ImageFile(target, 0o755)
    for seed in sorted((DEMO_SOURCES / "seeds").iterdir()):
        files[f"/demo/seeds/{seed.name}"] = ImageFile(source=seed)
    files["/demo/queue"] = directory()
    return write_image(layout, tag, files, ImageSettings(entrypoint=("/demo/service",), working_dir="/demo"))


def _verifier_files() -> dict[str, ImageFile]:
    """The two verifiers, and `both`, which runs them."""
    files: dict[str, ImageFile] = {}
    for name in ("memory", "disk"):
        sources = (VERIFIER_SOURCES / f"{name}.c", VERIFIER_SOURCES / "pattern.c")
        files[f"/usr/bin/{name}-verify"] = ImageFile(compile_static(name, sources), 0o755)
    both = (
        "#!/bin/sh\n# The two verifiers at once; ends with the status of the first that ends.\n"
        "rm -f /run/first; mkfifo /run/first\n"
        "(memory-verify $1; echo $? > /run/first) &\n(disk-verify $2; echo $? > /run/first) &\n"
        "read -r status < /run/first\nexit $status\n"
    )
    files["/usr/bin/both"] = text(both, 0o755)
    return files
