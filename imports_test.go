package perch_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// allowedImports are the packages of ours that each may import. cmd may use
// everything but the packages that the root wires: it decides nothing.
var allowedImports = map[string][]string{
	"session":  nil,
	"auth":     nil,
	"backend":  nil,
	"protocol": nil,
	"netpoll":  {"session"},
	"topic":    {"session"},
	"cluster":  {"session", "topic", "auth"},
	"handler":  {"session", "topic", "protocol", "auth", "backend"},
	"bench":    {"protocol"},
	"":         {"session", "netpoll", "topic", "protocol", "auth", "backend", "cluster", "handler"},
	"cmd":      {"", "bench"},
}

// forbiddenImports are packages of others that must not come near one of ours,
// even through a third.
var forbiddenImports = map[string][]string{
	"session":  {"net", "net/http", "github.com/panjf2000/gnet/v2", "github.com/gin-gonic/gin"},
	"topic":    {"net", "net/http", "github.com/panjf2000/gnet/v2", "github.com/gin-gonic/gin"},
	"protocol": {"net/http", "github.com/panjf2000/gnet/v2", "github.com/gin-gonic/gin"},
	"netpoll":  {"github.com/gin-gonic/gin", "github.com/centrifugal/protocol", "github.com/golang-jwt/jwt/v5"},
	"auth":     {"github.com/gin-gonic/gin", "github.com/panjf2000/gnet/v2", "github.com/gobwas/ws"},
	"backend":  {"github.com/gin-gonic/gin", "github.com/panjf2000/gnet/v2", "github.com/gobwas/ws", "github.com/centrifugal/protocol"},
	"handler":  {"github.com/panjf2000/gnet/v2", "github.com/gobwas/ws"},
}

type listedPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// TestImports keeps the imports a DAG, as the layout wants it: netpoll and
// handler meet in the root only, and internal is open to all.
func TestImports(t *testing.T) {
	const module = "perch"
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	// local is the path below the module, and the folder at its top.
	local := func(imported string) (dir, top string, ours bool) {
		if imported == module {
			return "", "", true
		}
		dir, ours = strings.CutPrefix(imported, module+"/")
		top, _, _ = strings.Cut(dir, "/")
		return dir, top, ours
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		dir, top, _ := local(p.ImportPath)
		seen[top] = true
		allowed, known := allowedImports[top]
		if !known && top != "internal" {
			t.Errorf("%s: no rule for this package; see allowedImports", p.ImportPath)
		}
		for _, i := range p.Imports {
			_, itop, ours := local(i)
			switch {
			case !ours:
			case itop == top && top != "": // a package below its own folder
			case itop == "internal" && top != "internal" && !strings.HasPrefix(i, module+"/internal/testkit"):
			case slices.Contains(allowed, itop):
			default:
				t.Errorf("%s must not import %s", p.ImportPath, i)
			}
		}
		for _, d := range forbiddenImports[top] {
			if slices.Contains(p.Deps, d) {
				t.Errorf("%s must not depend on %s", p.ImportPath, d)
			}
		}
		if strings.HasPrefix(dir, "internal/") && path.Base(dir) == "util" {
			t.Errorf("%s: a package is a noun", p.ImportPath)
		}
	}
	for _, top := range []string{"", "cmd", "netpoll", "session", "protocol", "topic", "auth", "backend", "handler", "internal"} {
		if !seen[top] {
			t.Errorf("no package in %q was listed", top)
		}
	}
}
