package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"perch/topic"
)

const (
	// uplinkBatch is how many messages go up at once, and uplinkBatchBytes how large
	// they are together.
	uplinkBatch      = 256
	uplinkBatchBytes = 1 << 20
	// uplinkTopics is of how many topics, at once, publications go up one by one.
	uplinkTopics = 64
	// uplinkRetry is between two attempts, twice as long each time up to uplinkWait.
	uplinkRetry = 100 * time.Millisecond
	uplinkWait  = 5 * time.Second

	headerBatch    = "Nats-Batch-Id"
	headerBatchSeq = "Nats-Batch-Sequence"
	headerCommit   = "Nats-Batch-Commit"
)

// errRefused: the hub does not take a batch as one.
var errRefused = errors.New("cluster: batch refused")

// run sends up what waits, in its order.
func (u *uplink) run() {
	life := u.l.b.life
	defer u.close()
	look := time.NewTicker(uplinkLook)
	defer look.Stop()
	wait := uplinkRetry
	for life.Err() == nil {
		if !u.ready.Load() {
			if !pauseFor(life, uplinkLook, u.wake) {
				return
			}
			continue
		}
		u.repairAll()
		n, err := u.send(life)
		switch {
		case err == nil && n > 0:
			wait = uplinkRetry
		case err == nil:
			select {
			case <-life.Done():
			case <-u.wake:
			case <-look.C:
				u.watch(life)
			}
		case life.Err() == nil:
			if u.l.joined.Load() {
				if quiet, ok := u.seldom.Pass(10 * time.Second); ok {
					u.l.log.Warn("hub does not take what waits for it: are its nodes up, with the same namespaces?",
						"err", err, "waiting", u.waiting().messages, "quiet", quiet)
				}
			}
			u.watch(life)
			pauseFor(life, wait, nil)
			if wait = min(2*wait, uplinkWait); !u.l.joined.Load() {
				u.awaitHub(life)
				wait = uplinkRetry
			}
		}
	}
}

// close ends what waits for the disk.
func (u *uplink) close() {
	u.opens.Lock() // open sees that all has ended, or has ended itself
	defer u.opens.Unlock()
	if u.s.blocks != nil {
		u.s.blocks.close()
	}
}

// awaitHub waits until the hub is there, with an eye on the stream.
func (u *uplink) awaitHub(ctx context.Context) {
	for looked := time.Now(); ctx.Err() == nil && !u.l.joined.Load(); {
		pauseFor(ctx, uplinkLook, u.wake)
		u.repairAll()
		if time.Since(looked) >= uplinkLook {
			u.watch(ctx)
			looked = time.Now()
		}
	}
}

// watch looks at the stream.
func (u *uplink) watch(ctx context.Context) {
	if err := u.look(); err != nil && ctx.Err() == nil {
		if quiet, ok := u.seldom.Pass(10 * time.Second); ok {
			u.l.log.Warn("what waits for the hub was not looked at", "err", err, "quiet", quiet)
		}
	}
}

// repairAll repairs what can be now.
func (u *uplink) repairAll() {
	u.mu.Lock()
	var all []*stream
	for s := range u.repairs {
		all = append(all, s)
	}
	u.mu.Unlock()
	for _, s := range all {
		if s.life.Err() != nil {
			u.mu.Lock()
			delete(u.repairs, s)
			u.mu.Unlock()
			continue
		}
		if err := u.repair(s); err != nil && !errors.Is(err, errFlying) && s.life.Err() == nil {
			if quiet, ok := u.seldom.Pass(10 * time.Second); ok {
				u.l.log.Error("publications can't wait for the hub: those with a history fail", "err", err, "quiet", quiet)
			}
		}
	}
}

// send sends up the next ones, and tells how many. Those that the hub has are not
// sent again, but for an answer that was lost: their ids tell the hub.
func (u *uplink) send(ctx context.Context) (int, error) {
	rows, err := waitFor(ctx, func(done func([]row, error)) {
		u.s.batch(">", u.at+1, uplinkBatch, uplinkBatchBytes, func(rows []row, _ bool, err error) { done(rows, err) })
	})
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	u.noteDropped(rows[0].seq)
	begun := 0
	for begun < len(rows) {
		n, do := u.part(rows[begun:])
		if err = do(ctx); err != nil {
			break
		}
		begun += n
	}
	if begun == 0 {
		return 0, err
	}
	u.at = rows[begun-1].seq
	u.forwarded.Add(uint64(begun))
	u.noteSent(rows[:begun])
	// The mark comes before the purge: what is gone is known to be.
	e := u.note(ctx)
	if e == nil {
		e = u.purge(ctx)
	}
	if e == nil {
		e = u.look()
	}
	if err == nil {
		err = e
	}
	return begun, err
}

// noteDropped counts what is gone before the hub had it.
func (u *uplink) noteDropped(first uint64) {
	gone := first - u.at - 1
	if gone == 0 {
		return
	}
	u.dropped.Add(gone)
	u.at = first - 1
	u.l.log.Warn("publications were dropped before the hub had them, see nats.leaf.store_bytes", "messages", gone)
}

// part is what goes up next in one way, and the way.
func (u *uplink) part(rows []row) (int, func(context.Context) error) {
	kind := func(w *row) (ns string, single bool) {
		r, err := decode(w.data)
		return u.namespace(w), err != nil || r.flags&(flagVersion|flagRemoved) != 0
	}
	ns, single := kind(&rows[0])
	n := 1
	for n < len(rows) {
		next, s := kind(&rows[n])
		if s != single || !single && next != ns {
			break
		}
		n++
	}
	rows = rows[:n]
	if single || n == 1 {
		return n, func(ctx context.Context) error { return u.each(ctx, rows) }
	}
	return n, func(ctx context.Context) error {
		err := u.together(ctx, rows)
		if errors.Is(err, errRefused) {
			err = u.each(ctx, rows)
		}
		return err
	}
}

// subject is where the hub stores it.
func (u *uplink) subject(ns, name string) string {
	return u.l.b.link.Prefix() + "." + subjectStored + "." + ns + "." + token(name)
}

// head goes with one to the hub. The publisher's key, where there is one, is the
// same wherever the publication comes in.
func (u *uplink) head(w *row) nats.Header {
	id := u.l.site + "." + u.id + "." + strconv.FormatUint(w.seq, 10)
	if key := w.head[headerID]; len(key) > 0 {
		id = key[0]
	}
	return nats.Header{headerMsgID: {id}, headerSite: {u.l.site}}
}

// up sends one message to the hub and waits for its answer.
func (u *uplink) up(ctx context.Context, m *message) (ack, error) {
	return waitFor(ctx, func(done func(ack, error)) {
		m.got = func(m *nats.Msg, err error) bool {
			done(readAck(m, err))
			return false
		}
		if !u.l.b.out.send(m) {
			done(ack{}, topic.ErrFull)
		}
	})
}

// together has the hub store publications of one namespace in their order, all or
// none: sent one behind the other without waiting, one could get lost and the next
// ones not.
func (u *uplink) together(ctx context.Context, rows []row) error {
	batch := newEpoch() + newEpoch()
	ns := u.namespace(&rows[0])
	for i := range rows {
		w := &rows[i]
		name, err := topicOf(w.data)
		if err != nil {
			return errRefused
		}
		h := u.head(w)
		h[headerBatch] = []string{batch}
		h[headerBatchSeq] = []string{strconv.Itoa(i + 1)}
		m := &message{subject: u.subject(ns, name), header: h, data: w.data}
		if i < len(rows)-1 {
			if !u.l.b.out.send(m) {
				return topic.ErrFull
			}
			continue
		}
		h[headerCommit] = []string{"1"}
		a, err := u.up(ctx, m)
		if err != nil && a.Error != nil {
			return errRefused // one of them is there already, or the hub knows no batches
		}
		return err
	}
	return nil
}

// each sends publications up one by one, those of different topics at once.
func (u *uplink) each(ctx context.Context, rows []row) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var order []string
	topics := make(map[string][]*row)
	for i := range rows {
		name, err := topicOf(rows[i].data)
		if err != nil {
			u.l.malformed.Add(1)
			continue
		}
		if topics[name] == nil {
			order = append(order, name)
		}
		topics[name] = append(topics[name], &rows[i])
	}
	most := make(chan struct{}, uplinkTopics)
	var all sync.WaitGroup
	for _, name := range order {
		most <- struct{}{}
		all.Go(func() {
			defer func() { <-most }()
			for _, w := range topics[name] {
				if err := u.one(ctx, name, w); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// one sends up one publication, or the mark that a history is gone.
func (u *uplink) one(ctx context.Context, name string, w *row) error {
	r, err := decode(w.data)
	if err != nil {
		u.l.malformed.Add(1)
		return nil
	}
	ns := u.namespace(w)
	subject := u.subject(ns, name)
	if r.flags&(flagVersion|flagRemoved) == 0 {
		_, err := u.up(ctx, &message{subject: subject, header: u.head(w), data: w.data})
		return err
	}
	for range conflictTries {
		last, err := u.hubLast(ctx, ns, name)
		if err != nil {
			return err
		}
		data, seq := w.data, uint64(0)
		h := u.head(w)
		if last != nil {
			seq = last.seq
			have, err := decode(last.data)
			if r.flags&flagRemoved != 0 {
				if err == nil && have.flags&flagRemoved != 0 {
					return nil
				}
				h[headerRollup] = []string{rollupSubject}
				data = encodeRemoved(name, seq)
			} else if err == nil && have.version >= r.version && (r.versionEpoch == "" || r.versionEpoch == have.versionEpoch) {
				return nil // the hub has a newer one
			}
		} else if r.flags&flagRemoved != 0 {
			return nil
		}
		h[headerExpectLast] = []string{strconv.FormatUint(seq, 10)}
		if _, err = u.up(ctx, &message{subject: subject, header: h, data: data}); !errors.Is(err, errConflict) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, errConflict)
}

// hubLast is the latest message of a topic at the hub; nil: there is none.
func (u *uplink) hubLast(ctx context.Context, ns, name string) (*row, error) {
	a, err := u.l.askHub(ctx, ns, readQuestion{Site: u.l.site, Last: token(name)})
	if err != nil || len(a.rows) == 0 {
		return nil, err
	}
	return &a.rows[0], nil
}
