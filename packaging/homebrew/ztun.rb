class Ztun < Formula
  desc "TUN router: everything a machine does through a SOCKS5 proxy"
  homepage "@HOMEPAGE@"
  version "@VERSION@"
  license "MIT"

  on_macos do
    on_arm do
      url "@RELEASE@/ztun-@VERSION@-aarch64-macos.tar.gz"
      sha256 "@SHA256:ztun-@VERSION@-aarch64-macos.tar.gz@"
    end
    on_intel do
      url "@RELEASE@/ztun-@VERSION@-x86_64-macos.tar.gz"
      sha256 "@SHA256:ztun-@VERSION@-x86_64-macos.tar.gz@"
    end
  end

  on_linux do
    on_arm do
      url "@RELEASE@/ztun-@VERSION@-aarch64-linux-musl.tar.gz"
      sha256 "@SHA256:ztun-@VERSION@-aarch64-linux-musl.tar.gz@"
    end
    on_intel do
      url "@RELEASE@/ztun-@VERSION@-x86_64-linux-musl.tar.gz"
      sha256 "@SHA256:ztun-@VERSION@-x86_64-linux-musl.tar.gz@"
    end
  end

  def install
    bin.install "ztun"
    man1.install "share/ztun.1"
    bash_completion.install "share/ztun.bash" => "ztun"
    zsh_completion.install "share/_ztun"
    fish_completion.install "share/ztun.fish"
    pkgshare.install "share/ztun.toml"
  end

  service do
    run [opt_bin/"ztun", "--config", etc/"ztun/ztun.toml"]
    keep_alive crashed: true
    require_root true
    log_path var/"log/ztun.log"
    error_log_path var/"log/ztun.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/ztun --version")
  end
end
