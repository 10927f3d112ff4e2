package auth

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// TokenStore is where refresh-token families and revocations stand: in a log of
// this process (Store), or with other nodes in a cluster. A method that changes
// something returns once the change is kept, and belongs on no loop; the errors
// are ErrStoreWrite, ErrStoreClosed and what the methods name. Safe from any
// goroutine.
type TokenStore interface {
	// NewFamily begins a family of f.Client and returns its first token. f.Expires
	// and f.Access are when that token and the access token that goes with it
	// expire. Over the bound of the client's families, the one that was used the
	// longest ago is forgotten: its access token lives out its time, its refresh
	// token is not good any more.
	NewFamily(f Family) (token string, info FamilyInfo, err error)
	// Rotate takes token in exchange for the next of its family, whose expiry and
	// whose access token's is given. check, where set, may refuse a good token
	// before it is used up. A token that was rotated before revokes its family. It
	// fails with ErrGrant or check's error.
	Rotate(token, client string, expires, access int64, check func(FamilyInfo) error) (next string, info FamilyInfo, err error)
	// Lookup returns what is known of a refresh token of client; ok is false where
	// it is not good. It does not use it up.
	Lookup(token, client string) (info FamilyInfo, ok bool, err error)
	// RevokeToken revokes the family of a refresh token of client, with everything
	// issued with it; also where the token is one that was rotated: who holds it
	// wants the family ended. found is false where there is no such family.
	RevokeToken(token, client string) (found bool, err error)
	// RevokeID revokes the token jti of client until then, its expiry in seconds
	// since 1970. It fails with ErrStoreFull.
	RevokeID(client, jti string, until int64) error

	// Those of Revocations.
	Revoked(jti, family string) bool
	ClientRevoked(client string, revision uint64) bool
	ClientCut(client string) uint64
	OnRevoke(f func(Revocation))
	Count() int

	// Failures tells how many writes have failed, and whether the last one did.
	Failures() (n uint64, failing bool)
	Close() error
}

var (
	// ErrStoreFull: as many revocations as are kept are in force.
	ErrStoreFull = errors.New("auth: too many revocations")
	// ErrStoreClosed: the store was closed.
	ErrStoreClosed = errors.New("auth: store closed")
	// ErrStoreWrite: the change is not kept: the disk may be full, or what keeps it
	// can't be reached. It can be tried again.
	ErrStoreWrite = errors.New("auth: store not written")
	errNotWritten = errors.New("an earlier write failed")
)

const (
	familiesPerClient = 100_000
	maxRevocations    = 1_000_000
	compactMin        = 1 << 20 // bytes of log below which it is never rewritten
	compactFactor     = 4       // times its size when it was rewritten last
	sweepEvery        = time.Minute
)

// StoreOptions are of a Store. Dir must be set.
type StoreOptions struct {
	Dir    string
	Logger *slog.Logger
	// FamiliesPerClient bounds the refresh-token families of one client; over it
	// the one that was used the longest ago is forgotten. 0: 100,000 (about 25 MB).
	FamiliesPerClient int
	// MaxRevocations bounds the revocations in force; over it ErrStoreFull. 0:
	// 1,000,000.
	MaxRevocations int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Store keeps refresh-token families and revocations in memory and in the log.
// A method that changes something returns once the change is on disk; changes
// that come at once share one sync. Safe from any goroutine, but those methods
// wait for the disk; Revoked does not.
type Store struct {
	*Revocations
	opts StoreOptions
	path string
	lock *os.File
	log  *slog.Logger

	// The families. What mu guards is changed before it is on disk: a crash
	// between leaves a client, who had no answer, with what it had before.
	mu       sync.Mutex
	families map[familyKey]*family
	owners   map[string]*owner
	pending  []byte // records of the batch that gathers
	probe    bool   // the batch shall be committed also where it is empty
	batch    *batch
	closed   bool

	// failing: the last write failed. failures counts those that did.
	failing  atomic.Bool
	failures atomic.Uint64

	// The committer's.
	file *os.File
	size int64
	base int64 // size after the last rewrite
	wake chan struct{}
	stop chan struct{}
	done chan struct{}
}

// batch is the records that one sync covers.
type batch struct {
	done chan struct{}
	err  error // set before done is closed
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// OpenStore reads the log in Dir, cuts off a torn tail, drops what has expired
// and takes the directory for this process (ErrLocked).
func OpenStore(opts StoreOptions) (*Store, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.FamiliesPerClient <= 0 {
		opts.FamiliesPerClient = familiesPerClient
	}
	s := &Store{
		Revocations: NewRevocations(opts.MaxRevocations, opts.Now),
		opts:        opts, log: opts.Logger,
		path:     filepath.Join(opts.Dir, logFile),
		families: make(map[familyKey]*family),
		owners:   make(map[string]*owner),
		batch:    newBatch(),
		wake:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
		done:     make(chan struct{}),
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("auth: open store: %w", err)
	}
	go s.commitLoop()
	return s, nil
}

func (s *Store) open() (err error) {
	if err = makeDir(s.opts.Dir); err != nil {
		return err
	}
	if s.lock, err = lockDir(s.opts.Dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	// A compaction that was killed leaves its file.
	left, _ := filepath.Glob(filepath.Join(s.opts.Dir, "."+logFile+".*.tmp"))
	for _, name := range left {
		os.Remove(name)
	}
	if _, err = readLog(s.path, s.log, s.apply); err != nil {
		return err
	}
	return s.compact()
}

// Close waits for what is under way. Safe to call twice.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.done
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.done
	var err error
	if s.file != nil {
		err = s.file.Close()
	}
	return errors.Join(err, s.lock.Close())
}

// Failures implements TokenStore.
func (s *Store) Failures() (n uint64, failing bool) { return s.failures.Load(), s.failing.Load() }

// RevokeID implements TokenStore. Where the disk fails, the revocation holds in
// this process at most.
func (s *Store) RevokeID(client, jti string, until int64) error {
	if jti == "" || until <= s.opts.Now().Unix() {
		return nil
	}
	if s.Full() {
		return ErrStoreFull
	}
	r := Revocation{ID: jti, Client: client, Until: until}
	err := s.write(func() []byte {
		s.Add(r)
		return record(recordToken).string(jti).time(until).appendTo(s.pending)
	})
	s.Tell(r)
	return err
}

// write runs change under mu, which returns pending with its record added, or
// as it is, and waits until the record is on disk.
func (s *Store) write(change func() []byte) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrStoreClosed
	}
	before := len(s.pending)
	s.pending = change()
	if len(s.pending) == before {
		s.mu.Unlock()
		return nil
	}
	b := s.batch
	s.mu.Unlock()
	return s.wait(b)
}

// writable fails where the last write did and the disk is no better now. A
// change is kept in memory whether it reached the disk or not: for a revocation
// that is right, but a rotation would take from a client the token that it must
// come again with.
func (s *Store) writable() error {
	if !s.failing.Load() {
		return nil
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrStoreClosed
	}
	s.probe = true
	b := s.batch
	s.mu.Unlock()
	return s.wait(b)
}

func (s *Store) wait(b *batch) error {
	select {
	case s.wake <- struct{}{}:
	default: // it is awake, and takes this batch with its next turn
	}
	<-b.done
	return b.err
}

func (s *Store) commitLoop() {
	defer close(s.done)
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-s.wake:
			s.commit()
		case <-sweep.C:
			s.sweep()
		case <-s.stop:
			s.commit()
			return
		}
	}
}

// commit writes what has gathered. A failed sync says nothing about what is on
// disk, and the next may lie: the log is written anew before it is used again.
func (s *Store) commit() {
	s.mu.Lock()
	records, b := s.pending, s.batch
	if len(records) == 0 && !s.probe {
		s.mu.Unlock()
		return
	}
	s.pending, s.probe, s.batch = nil, false, newBatch()
	s.mu.Unlock()
	was := s.failing.Load()
	err := s.append(records)
	if err != nil || s.size > compactMin && s.size > compactFactor*s.base {
		// The state holds the records already: a rewritten log is as good.
		switch e := s.compact(); {
		case e == nil:
			err = nil
		case err == nil:
			s.log.Error("auth log not rewritten", "err", e)
		default:
			err = e
		}
	}
	s.failing.Store(err != nil)
	if err != nil {
		s.failures.Add(1)
		b.err = fmt.Errorf("%w: %w", ErrStoreWrite, err)
	}
	// Once for each time that it goes wrong: requests go on failing meanwhile.
	if failing := err != nil; failing != was {
		if failing {
			s.log.Error("auth log can't be written: tokens are neither issued with refresh tokens nor revoked", "file", s.path, "err", err)
		} else {
			s.log.Info("auth log is written again", "file", s.path)
		}
	}
	close(b.done)
}

func (s *Store) append(records []byte) error {
	if s.failing.Load() {
		return errNotWritten
	}
	if len(records) == 0 {
		return nil
	}
	_, err := s.file.Write(records)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		return err
	}
	s.size += int64(len(records))
	return nil
}

// compact writes the live state to a new log and puts it in the place of the
// old. Records that gather meanwhile go to the new one; that some of them stand
// in the state already does no harm, they say the same again.
func (s *Store) compact() error {
	data := s.snapshot()
	tmp, err := writeTemp(s.path, data)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		os.Remove(tmp)
		return err
	}
	if err = os.Rename(tmp, s.path); err == nil {
		err = syncDir(s.opts.Dir)
	} else {
		os.Remove(tmp)
	}
	if err != nil {
		f.Close()
		return err
	}
	if s.file != nil {
		s.file.Close()
	}
	s.file, s.size, s.base = f, int64(len(data)), int64(len(data))
	return nil
}

// snapshot is a log of the live state, and drops what has expired from it.
func (s *Store) snapshot() []byte {
	now := s.opts.Now().Unix()
	s.sweep()
	out := []byte(logMagic)
	s.mu.Lock()
	for _, o := range s.owners {
		for f := o.oldest; f != nil; f = f.newer { // in order of use, which a start keeps
			if f.expires > now {
				out = f.record().appendTo(out)
			}
		}
	}
	s.mu.Unlock()
	s.revMu.RLock()
	defer s.revMu.RUnlock()
	for jti, until := range s.tokens {
		out = record(recordToken).string(jti).time(until).appendTo(out)
	}
	for sid, until := range s.sids {
		out = record(recordSID).string(sid).time(until).appendTo(out)
	}
	return out
}

// sweep forgets what has expired. Nothing of it is logged: a start sees the
// same times.
func (s *Store) sweep() {
	now := s.opts.Now().Unix()
	s.mu.Lock()
	for _, f := range s.families {
		if f.expires <= now {
			s.removeLocked(f)
		}
	}
	s.mu.Unlock()
	s.Sweep()
}
