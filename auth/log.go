package auth

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
)

// The log in the data directory: a header, then records, each
//
//	length of the payload  4 bytes, little endian
//	CRC-32C of length and payload  4 bytes
//	payload  the kind of record, then its fields
//
// A record that is cut short or does not match its sum ends the log: it and
// what follows was never acknowledged (an acknowledged record was synced, with
// all that stands before it), so it is cut off.

const (
	logMagic      = "perch auth log 1\n"
	recordHead    = 8
	recordMax     = 1 << 20
	recordFamily  = 1 // key, client, subject, hash, generation, expires, access
	recordRotate  = 2 // key, hash, generation, expires, access
	recordRevoke  = 3 // key, until: the family and all issued with it
	recordToken   = 4 // jti, until
	recordDropped = 5 // key: the family is forgotten, what was issued lives on
	recordSID     = 6 // sid, until: a family that is not ours
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// ErrLocked: another process uses the data directory.
	ErrLocked = errors.New("auth: data directory is in use by another process")
	errRecord = errors.New("auth: bad record")
)

// appendRecord frames a payload.
func appendRecord(dst []byte, payload []byte) []byte {
	var head [recordHead]byte
	binary.LittleEndian.PutUint32(head[:4], uint32(len(payload)))
	sum := crc32.Update(crc32.Checksum(head[:4], castagnoli), castagnoli, payload)
	binary.LittleEndian.PutUint32(head[4:], sum)
	dst = append(dst, head[:]...)
	return append(dst, payload...)
}

// nextRecord returns the first record's payload and what follows. ok is false at
// the end of the log, also where it ends in the middle.
func nextRecord(log []byte) (payload, rest []byte, ok bool) {
	if len(log) < recordHead {
		return nil, log, false
	}
	n := binary.LittleEndian.Uint32(log)
	if n == 0 || n > recordMax || uint64(len(log)) < recordHead+uint64(n) {
		return nil, log, false
	}
	payload = log[recordHead : recordHead+n]
	sum := crc32.Update(crc32.Checksum(log[:4], castagnoli), castagnoli, payload)
	if sum != binary.LittleEndian.Uint32(log[4:]) {
		return nil, log, false
	}
	return payload, log[recordHead+n:], true
}

// encoder builds a payload, decoder reads it.
type encoder struct{ b []byte }

func record(kind byte) *encoder             { return &encoder{b: []byte{kind}} }
func (e *encoder) bytes(p []byte) *encoder  { e.b = append(e.b, p...); return e }
func (e *encoder) number(n uint64) *encoder { e.b = binary.AppendUvarint(e.b, n); return e }
func (e *encoder) time(unix int64) *encoder { return e.number(uint64(max(unix, 0))) }
func (e *encoder) string(s string) *encoder {
	e.number(uint64(len(s)))
	e.b = append(e.b, s...)
	return e
}
func (e *encoder) appendTo(dst []byte) []byte { return appendRecord(dst, e.b) }

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) number() uint64 {
	n, w := binary.Uvarint(d.b)
	if w <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[w:]
	return n
}

func (d *decoder) time() int64 { return int64(d.number() & (1<<63 - 1)) }

func (d *decoder) fill(dst []byte) {
	if len(d.b) < len(dst) {
		d.bad, d.b = true, nil
		return
	}
	copy(dst, d.b)
	d.b = d.b[len(dst):]
}

func (d *decoder) string() string {
	n := d.number()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

// done reports whether the payload was read to its end, and no further.
func (d *decoder) done() bool { return !d.bad && len(d.b) == 0 }

// lockDir takes the data directory for this process. The lock goes with the
// process, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, err
	}
	return f, nil
}

// LockDir makes dir, with mode 0700, and takes it for this process (ErrLocked where
// another has it). The closer gives it back.
func LockDir(dir string) (io.Closer, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	f, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("auth: lock data directory: %w", err)
	}
	return f, nil
}

// readLog calls apply with each record of the log at path, and cuts off a torn
// tail. size is the log's length afterwards; 0: there is none.
func readLog(path string, log *slog.Logger, apply func(payload []byte) error) (size int64, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	rest, ok := bytes.CutPrefix(data, []byte(logMagic))
	if !ok {
		// The file is made whole, by rename: a wrong beginning is not a torn one.
		return 0, fmt.Errorf("%s is not a log of this version", path)
	}
	for {
		payload, next, ok := nextRecord(rest)
		if !ok {
			break
		}
		if err := apply(payload); err != nil {
			return 0, fmt.Errorf("%s at offset %d: %w", path, len(data)-len(rest), err)
		}
		rest = next
	}
	size = int64(len(data) - len(rest))
	if len(rest) == 0 {
		return size, nil
	}
	log.Warn("torn tail of auth log cut off", "bytes", len(rest), "kept", size)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	return size, f.Sync()
}
