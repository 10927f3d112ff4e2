package netpoll

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"

	errorx "github.com/panjf2000/gnet/v2/pkg/errors"
	"golang.org/x/sys/unix"

	"perch/internal/pace"
	"perch/internal/stats"
)

// firstBytes is how much is read of a new connection at once.
const firstBytes = 4 << 10

// readFirst reads what a new connection has said already. What is not there,
// or an error, is left to gnet, which hears of it from epoll.
func (c *conn) readFirst() {
	l := c.loop
	if l.first == nil {
		l.first = make([]byte, firstBytes)
	}
	if n, err := readNow(int(c.fd), l.first); err == nil && n > 0 {
		c.traffic(l.first[:n])
		l.flushDirty()
	}
}

// A failing accept. gnet ends the loop in which one fails, with all of its
// connections, and then the engine: a process that is out of descriptors for a
// moment, or a kernel out of memory, would cost every session. gnet knows that
// error by errors.Is and an exported variable, and has no option for it, so the
// variable holds an error that errors.Is finds equal to nothing: the loop goes
// on. It is set before any engine runs, for all of gnet in the process.
//
// The listener is level-triggered, so a loop that goes on at once would do
// nothing else. gnet tells its logger of the failure, on the loop, before it
// goes on: there the listeners are taken out of the epoll sets, until a later
// tick. Who connects meanwhile waits in the kernel's queue.
func init() { errorx.ErrAcceptSocket = harmless{} }

// harmless is equal to nothing, since it can't be compared.
type harmless struct{ _ []struct{} }

func (harmless) Error() string { return "accept failed" }

const (
	// gnetAccept begins the format in which gnet tells its logger of it.
	gnetAccept = "Accept() failed"
	// acceptPause is how long no connection is accepted after a failure for want of
	// descriptors or memory.
	acceptPause = tick
)

// acceptCauses are the labels of what an accept fails with; others are other.
var acceptCauses = map[syscall.Errno]string{
	unix.EMFILE: "emfile", unix.ENFILE: "enfile", unix.ENOBUFS: "enobufs", unix.ENOMEM: "enomem",
}

// acceptAdvice says what to do about each.
var acceptAdvice = map[string]string{
	"emfile":  "raise the descriptor limit (ulimit -n, LimitNOFILE=) or lower limits.connections",
	"enfile":  "raise fs.file-max",
	"enobufs": "the kernel is short of memory: see net.ipv4.tcp_mem and the memory limit",
	"enomem":  "the kernel is short of memory: see net.ipv4.tcp_mem and the memory limit",
	"other":   "see accept(2)",
}

// acceptFailures count what accept has failed with.
type acceptFailures struct {
	count stats.Vec[string]
	told  pace.Seldom
}

// acceptFailed is told of each accept that failed. Runs on the loop.
func (s *Server) acceptFailed(err error) {
	if s.listening.over() {
		return // its own shutdown made it fail
	}
	cause := "other"
	var errno syscall.Errno
	if errors.As(err, &errno) && acceptCauses[errno] != "" {
		cause = acceptCauses[errno]
		s.listening.pause(acceptPause)
	}
	s.acceptFailures.count.Inc(cause)
	if _, ok := s.acceptFailures.told.Pass(tellEvery); ok {
		s.log.Error("connections can't be accepted", slog.String("err", err.Error()), slog.String("advice", acceptAdvice[cause]))
	}
}

// acceptError finds, in what gnet logs, the failure of an accept.
func acceptError(format string, args []any) error {
	if len(args) != 1 || !strings.HasPrefix(format, gnetAccept) {
		return nil
	}
	err, ok := args[0].(error)
	if !ok {
		return fmt.Errorf("netpoll: accept: %v", args[0])
	}
	return err
}
