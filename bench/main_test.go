package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// workerEnv makes the test binary a worker: workerRuns is a real one, the
// others misbehave.
const (
	workerEnv  = "PERCH_BENCH_TEST_WORKER"
	workerRuns = "runs"
	workerDies = "dies"
	workerTalk = "talks nonsense"
	workerSole = "is alone at its phase"
)

func TestMain(m *testing.M) {
	switch os.Getenv(workerEnv) {
	case workerRuns:
		if err := Worker(context.Background(), os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case workerDies:
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(3)
	case workerTalk:
		fmt.Println("hello")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case workerSole:
		first, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		if strings.Contains(first, `"index":0`) {
			fmt.Println(`{"phase":"begin"}`)
		} else {
			fmt.Println(`{"result":{"count":1}}`)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	code := m.Run()
	metricsClient.CloseIdleConnections()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goleak:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience is what a test waits for what must come; a machine under load is slow.
const patience = 10 * time.Second

const upgradeAnswer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Accept: " + acceptAnswer + "\r\n\r\n"

// serverFrame is a frame as a server sends it.
func serverFrame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

func textFrame(s string) []byte { return serverFrame(finBit|opText, []byte(s)) }

// readClientFrame reads a frame of a client, which must be masked.
func readClientFrame(r *bufio.Reader) (opcode byte, payload []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return 0, nil, err
	}
	if head[0]&finBit == 0 || head[1]&maskBit == 0 {
		return 0, nil, errors.New("not one whole masked frame")
	}
	opcode = head[0] & 0xf
	n := uint64(head[1] &^ maskBit)
	switch n {
	case 126:
		_, err = io.ReadFull(r, head[:2])
		n = uint64(binary.BigEndian.Uint16(head[:]))
	case 127:
		_, err = io.ReadFull(r, head[:8])
		n = binary.BigEndian.Uint64(head[:])
	}
	if err != nil {
		return 0, nil, err
	}
	var key [4]byte
	if _, err := io.ReadFull(r, key[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= key[i&3]
	}
	return opcode, payload, nil
}

func readRequest(r *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if head.WriteString(line); line == "\r\n" {
			return head.String(), nil
		}
	}
}

// scripted is a server whose connections do what the script says; n counts them
// from 0. Its end closes them.
func scripted(t *testing.T, script func(n int, c *net.TCPConn, r *bufio.Reader)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []net.Conn
	var work sync.WaitGroup
	work.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, c)
			mu.Unlock()
			work.Go(func() {
				defer c.Close()
				script(n, c.(*net.TCPConn), bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range all {
			c.Close()
		}
		mu.Unlock()
		work.Wait()
	})
	return l.Addr()
}

// upgrade answers the request.
func upgrade(c net.Conn, r *bufio.Reader) error {
	if _, err := readRequest(r); err != nil {
		return err
	}
	_, err := io.WriteString(c, upgradeAnswer)
	return err
}

// echoServer echoes messages, and counts.
type echoServer struct {
	addr              net.Addr
	accepted, answers atomic.Int64
	answered          chan struct{} // closed by the first answer
}

func newEchoServer(t *testing.T) *echoServer {
	s := &echoServer{answered: make(chan struct{})}
	s.addr = scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) != nil {
			return
		}
		s.accepted.Add(1)
		for {
			opcode, p, err := readClientFrame(r)
			if err != nil {
				return
			}
			if s.answers.Add(1) == 1 {
				close(s.answered)
			}
			if _, err := c.Write(serverFrame(finBit|opcode, p)); err != nil {
				return
			}
		}
	})
	return s
}

func (s *echoServer) url() string { return "ws://" + s.addr.String() + "/echo" }
