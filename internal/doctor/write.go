package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The files that Write makes, below its directory. With /etc they lie where
// sysctl and systemd look.
const (
	SysctlFile = "sysctl.d/99-perch.conf"
	LimitsFile = "systemd/system/perch.service.d/limits.conf"
)

// Write makes SysctlFile and LimitsFile below dir with what the load needs, and
// returns a line for each thing that it did or left. A value is never lowered:
// what the system has set higher is left out, what an earlier file has set
// higher stays. A generator gets no LimitsFile. Each file is complete or untouched. It is called once at a
// time.
func (r *Report) Write(dir string) ([]string, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("doctor: write: %w", err)
	}
	sysctls := filepath.Join(dir, filepath.FromSlash(SysctlFile))
	old, err := readOld(sysctls)
	if err != nil {
		return nil, err
	}
	text, said := r.sysctlText(parseSettings(old))
	if err := replaceFile(sysctls, text); err != nil {
		return nil, err
	}
	said = append([]string{sysctls + ": written; load it with: sysctl -p " + sysctls}, said...)

	if r.Generator {
		// A generator is started by hand, not by systemd.
		return append(said, fmt.Sprintf("descriptors are set in the shell: ulimit -Hn %d", r.descriptors)), nil
	}
	limits := filepath.Join(dir, filepath.FromSlash(LimitsFile))
	if old, err = readOld(limits); err != nil {
		return said, err
	}
	text, more := r.limitsText(old)
	if err := replaceFile(limits, text); err != nil {
		return said, err
	}
	said = append(said, limits+": written; load it with: systemctl daemon-reload && systemctl restart perch")
	return append(said, more...), nil
}

// role is what the files are for.
func (r *Report) role() string {
	if r.Generator {
		return fmt.Sprintf("to open %d sessions", r.Connections)
	}
	return fmt.Sprintf("to hold %d sessions", r.Connections)
}

func (r *Report) sysctlText(old map[string]setting) (text string, said []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "# What this machine needs %s, by perch doctor.\n", r.role())
	b.WriteString("# docs/tuning.md has the reasons. What the machine has already is left out.\n")
	ours := make(map[string]bool)
	for _, s := range r.sysctls {
		ours[s.key] = true
		was, written := old[s.key]
		switch {
		case s.have == nil && !written:
			said = append(said, "  "+s.key+": left out, this system does not have it")
			continue
		case !written && s.satisfied(s.have):
			said = append(said, "  "+s.key+": left out, "+join(s.have)+" is enough")
			continue
		}
		set := s.above(s.have).above(was.numbers)
		note := ""
		if join(set.want) != join(s.want) {
			note = ", where it is higher than needed as it was"
		}
		said = append(said, "  "+set.line()+note)
		fmt.Fprintf(&b, "\n# %s\n%s\n", s.why, set.line())
	}
	// Keys of an earlier file that this load does not ask about.
	kept := false
	for _, key := range sortedKeys(old) {
		if ours[key] {
			continue
		}
		if !kept {
			b.WriteString("\n# As this file had them before.\n")
			kept = true
		}
		said = append(said, "  "+old[key].line+", kept")
		b.WriteString(old[key].line + "\n")
	}
	return b.String(), said
}

func (r *Report) limitsText(old string) (text string, said []string) {
	want := int64(r.descriptors)
	was := int64(0)
	for line := range strings.Lines(old) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "LimitNOFILE="); ok {
			// soft:hard, or both in one.
			_, hard, two := strings.Cut(v, ":")
			if !two {
				hard = v
			}
			if hard == "infinity" {
				was = 1<<63 - 1
			} else if n, err := strconv.ParseInt(hard, 10, 64); err == nil {
				was = max(was, n)
			}
		}
	}
	value := max(want, was, r.limit)
	line := "LimitNOFILE=" + strconv.FormatInt(value, 10)
	if value >= 1<<60 {
		line = "LimitNOFILE=infinity"
	}
	note := ""
	if value > want {
		note = fmt.Sprintf(", where it is higher than the %d needed as it was", want)
	}
	text = fmt.Sprintf("# What the service needs %s, by perch doctor.\n"+
		"# Each session is a descriptor. limits.connections bounds the sessions; without\n"+
		"# it, Perch takes as many as this limit allows.\n[Service]\n%s\n", r.role(), line)
	return text, []string{"  " + line + note}
}

// readOld is the text of a file that may not be there.
func readOld(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("doctor: read the earlier file: %w", err)
	}
	return string(b), nil
}

// replaceFile writes a file and its directories so that a reader sees the old
// or the new text, also after a crash.
func replaceFile(path, text string) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // sysctl.d and systemd are read by all
		return fmt.Errorf("doctor: write: %w", err)
	}
	f, err := os.CreateTemp(dir, ".perch-*")
	if err != nil {
		return fmt.Errorf("doctor: write: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("doctor: write %s: %w", path, err)
		}
	}()
	if _, err = f.WriteString(text); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
