// A forwarder on wireguard-go's own userspace stack, the engine of wireproxy: it takes TCP and UDP on this
// machine and leads each to a place behind the tunnel, as `wireproxy` does, and nothing more.
//
//	netstack UAPI-FILE ADDRESS MTU LISTEN=TO...   (udp:LISTEN=TO for UDP)
package main

import (
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	config := must(os.ReadFile(os.Args[1]))
	mtu := must(strconv.Atoi(os.Args[3]))
	tun, inside, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr(os.Args[2])}, nil, mtu)
	if err != nil {
		log.Fatal(err)
	}
	dev := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	if err := dev.IpcSet(string(config)); err != nil {
		log.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		log.Fatal(err)
	}
	for _, pair := range os.Args[4:] {
		listen, to, _ := strings.Cut(pair, "=")
		if rest, isUDP := strings.CutPrefix(listen, "udp:"); isUDP {
			go udp(inside, must(net.ListenPacket("udp", rest)), netip.MustParseAddrPort(to))
			continue
		}
		go tcp(inside, must(net.Listen("tcp", listen)), netip.MustParseAddrPort(to))
	}
	println("ready")
	select {}
}

func tcp(inside *netstack.Net, listener net.Listener, to netip.AddrPort) {
	for {
		near := must(listener.Accept())
		go func() {
			defer near.Close()
			far, err := inside.DialTCPAddrPort(to)
			if err != nil {
				return
			}
			defer far.Close()
			go func() { io.Copy(far, near); far.CloseWrite() }()
			io.Copy(near, far)
		}()
	}
}

// udp gives each sender a flow of its own.
func udp(inside *netstack.Net, socket net.PacketConn, to netip.AddrPort) {
	var flows sync.Map
	packet := make([]byte, 65_536)
	for {
		length, from, err := socket.ReadFrom(packet)
		if err != nil {
			return
		}
		flow, known := flows.Load(from.String())
		if !known {
			flow = must(inside.DialUDPAddrPort(netip.AddrPort{}, to))
			flows.Store(from.String(), flow)
			go func(flow net.Conn) {
				answer := make([]byte, 65_536)
				for length, err := flow.Read(answer); err == nil; length, err = flow.Read(answer) {
					socket.WriteTo(answer[:length], from)
				}
			}(flow.(net.Conn))
		}
		flow.(net.Conn).Write(packet[:length])
	}
}
