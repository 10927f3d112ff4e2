package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

// A machine that stops without warning loses what was not forced to the disk,
// though it may have been delivered. Beside the streams stands in which run of the
// machine they were open, and whether they were closed.
const (
	bootFile   = "boot"
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	bootClosed = "closed"
	// renewTimeout bounds how long the epochs of all streams may take to end.
	renewTimeout = time.Minute
)

// bootID names this run of the machine; empty where it can't be read.
func bootID() string {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// unclean tells whether the machine has stopped since the streams in dir were open,
// without their having been closed.
func unclean(dir, id string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, bootFile))
	if err != nil && !os.IsNotExist(err) {
		return false, err
	}
	before := strings.TrimSpace(string(b))
	return before != "" && before != id && before != bootClosed, nil
}

// opened notes that the streams of the embedded server are open. Where they may have
// lost what had been delivered, their epochs are over first, all of them: whatever
// ends the process before that is noted, the next start does it again.
func (l *Link) opened() error {
	dir, id := l.opts.Server.Dir, bootID()
	bad, err := unclean(dir, id)
	if err == nil && bad {
		ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
		defer cancel()
		err = l.endEpochs(ctx)
	}
	if err == nil {
		err = noteBoot(dir, id)
	}
	l.noted = err == nil
	return err
}

// endEpochs takes the epochs out of all streams: who follows one writes another. The
// sequences of what waits for the hub of a leaf get another id with it.
func (l *Link) endEpochs(ctx context.Context) error {
	all := l.js.ListStreams(ctx)
	for info := range all.Info() {
		name, subjects := info.Config.Name, info.Config.Subjects
		if len(subjects) == 0 {
			continue
		}
		base := strings.TrimSuffix(subjects[0], "*")
		switch {
		case strings.HasPrefix(name, l.Prefix()+streamHistory):
			s, err := l.js.Stream(ctx, name)
			if err == nil {
				err = s.Purge(ctx, jetstream.WithPurgeSubject(base+tokenEpoch))
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case name == l.Prefix()+streamUplinkAt:
			if err := l.endUplinkID(ctx, name, base+tokenMark); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return all.Err()
}

func (l *Link) endUplinkID(ctx context.Context, name, subject string) error {
	s, err := l.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	last, err := s.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var m uplinkMark
	if err := json.Unmarshal(last.Data, &m); err != nil {
		return err
	}
	m.ID = ""
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = l.js.Publish(ctx, subject, data)
	return err
}

// closed notes that everything is on the disk.
func closed(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(d.Fd()))
	if e := d.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return noteBoot(dir, bootClosed)
}

func noteBoot(dir, text string) error {
	name := filepath.Join(dir, bootFile)
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text + "\n")
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return forceFile(dir)
}
