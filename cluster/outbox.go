package cluster

import "sync"

// outbox takes what loops have to say to other nodes: a write to the connection
// may wait for the network, so it is done on a goroutine, which is there while
// something waits. What goes through it stays in order.
type outbox struct {
	publish func(subject string, data []byte) error
	most    int // bytes

	mu     sync.Mutex
	row    []letter
	bytes  int
	busy   bool
	closed bool
	done   sync.WaitGroup
}

type letter struct {
	subject string
	data    []byte
	size    int
	// make, where set, takes the place of data: it is called when the letter's turn
	// comes.
	make func() [][]byte
}

const letterOverhead = 128

// send never blocks; false: there is no room.
func (o *outbox) send(subject string, data []byte) bool {
	return o.put(letter{subject: subject, data: data, size: len(data)})
}

func (o *outbox) put(l letter) bool {
	n := letterOverhead + l.size
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.bytes+n > o.most {
		return false
	}
	o.bytes += n
	o.row = append(o.row, l)
	if !o.busy {
		o.busy = true
		o.done.Go(o.run)
	}
	return true
}

func (o *outbox) run() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.row) > 0 {
		row := o.row
		o.row = nil
		o.mu.Unlock()
		n := 0
		for _, l := range row {
			all := [][]byte{l.data}
			if l.make != nil {
				all = l.make()
			}
			for _, data := range all {
				// An error says that the connection is gone: who asks hears of it by that,
				// and news are not told late.
				_ = o.publish(l.subject, data)
			}
			n += letterOverhead + l.size
		}
		o.mu.Lock()
		o.bytes -= n
	}
	o.busy = false
}

// close takes no more and waits for what is there.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.done.Wait()
}
