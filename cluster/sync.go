package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// blocks forces what the embedded server has written of one stream to the disk.
//
// JetStream can do so before each answer, one message at a time: with a disk that
// takes 0.2 ms, some 5,000 a second, whoever waits. It writes a message to the
// stream's last block file before it answers; here all that have been answered
// since the last time are forced there together, and their publishers told then.
type blocks struct {
	dir  string // of the block files
	from int    // blocks before it are on the disk
	sync func(name string) error

	mu      sync.Mutex
	waiting []func(error)
	closed  bool
	written atomic.Int64 // messages on their way that have not been answered
	rest    chan struct{}
	wake    chan struct{}
	stop    chan struct{}
	done    sync.WaitGroup
}

// blockFile is how JetStream names the files of a stream: <number>.blk, each later
// one by 1 higher.
const blockFile = ".blk"

// gatherMost is the longest that those who have been answered wait for others.
const gatherMost = 4 * time.Millisecond

// blocksDir is where the embedded server keeps those of a stream.
func blocksDir(store, stream string) string {
	return filepath.Join(store, "jetstream", "$G", "streams", stream, "msgs")
}

// openBlocks is called once the stream has its first message. An error: the files
// are not where they are looked for.
func openBlocks(dir string) (*blocks, error) {
	all, err := listBlocks(dir)
	if err == nil && len(all) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("cluster: files of a stream: %w", err)
	}
	b := &blocks{dir: dir, from: all[0], sync: forceFile, wake: make(chan struct{}, 1), rest: make(chan struct{}, 1), stop: make(chan struct{})}
	if err := b.force(); err != nil {
		return nil, err
	}
	b.done.Go(b.run)
	return b, nil
}

// listBlocks are the numbers of the files, in their order.
func listBlocks(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), blockFile); ok {
			if n, err := strconv.Atoi(name); err == nil {
				all = append(all, n)
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

// begin notes a message on its way, answered that it is none any more.
func (b *blocks) begin() { b.written.Add(1) }
func (b *blocks) answered() {
	if b.written.Add(-1) == 0 {
		poke(b.rest)
	}
}

// gather waits for the others that are on their way: the more a forcing is for, the
// less it costs, and while it goes on the server can't write.
func (b *blocks) gather(t *time.Timer) {
	t.Reset(gatherMost)
	defer t.Stop()
	for b.written.Load() > 0 {
		select {
		case <-b.rest:
		case <-t.C:
			return
		case <-b.stop:
			return
		}
	}
}

// wait calls done once all that has been written until now is on the disk. It does
// not block.
func (b *blocks) wait(done func(error)) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		done(ErrUnavailable)
		return
	}
	b.waiting = append(b.waiting, done)
	first := len(b.waiting) == 1
	b.mu.Unlock()
	if first {
		poke(b.wake)
	}
}

func (b *blocks) take() []func(error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.waiting
	b.waiting = nil
	return all
}

func (b *blocks) run() {
	t := time.NewTimer(gatherMost)
	t.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-b.wake:
		}
		b.gather(t)
		all := b.take()
		if len(all) == 0 {
			continue
		}
		err := b.force()
		for _, done := range all {
			done(err)
		}
	}
}

// force brings the last block to the disk, and those before it that were the last
// one since the time before.
func (b *blocks) force() error {
	anew := false
	for n := b.from; ; n++ {
		err := b.sync(b.name(n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cluster: force to the disk: %w", err)
		}
		_, next := os.Lstat(b.name(n + 1))
		switch {
		case next == nil:
			// A new file: its name has to be on the disk as well.
			if err := b.sync(b.dir); err != nil {
				return fmt.Errorf("cluster: force to the disk: %w", err)
			}
		case err == nil:
			b.from = n
			return nil
		default:
			// Blocks have gone: their messages were too old, or too many.
			all, err := listBlocks(b.dir)
			switch {
			case err != nil || len(all) == 0 || all[len(all)-1] <= n && anew:
				return errors.Join(err, fmt.Errorf("cluster: %s holds no block behind %d", b.dir, n))
			case all[len(all)-1] <= n:
				anew, n = true, all[0]-1 // the stream has been made anew
			default:
				n = max(n, all[0]-1)
			}
		}
	}
}

func (b *blocks) name(n int) string { return filepath.Join(b.dir, strconv.Itoa(n)+blockFile) }

// forceFile opens the file anew each time: another may have taken its place.
func forceFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	err = f.Sync()
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func (b *blocks) close() {
	close(b.stop)
	b.done.Wait()
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	for _, done := range b.take() {
		done(ErrUnavailable)
	}
}
