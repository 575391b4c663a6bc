package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	lua "github.com/yuin/gopher-lua"
	"go.yaml.in/yaml/v2"
)

// argoFor and fluxFor say what the health checks of Argo CD and Flux must make of what kstatus says.
var (
	argoFor = map[string]string{"Current": "Healthy", "InProgress": "Progressing", "Failed": "Degraded", "Terminating": "Progressing"}
	fluxFor = map[string]string{"Current": "current", "InProgress": "inProgress", "Failed": "failed", "Terminating": "inProgress"}
)

// fixtures calls check with each fixture: its name, what kstatus says, and the object.
func fixtures(t *testing.T, check func(name, want string, object map[string]any)) {
	entries, err := os.ReadDir("fixtures")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile("fixtures/" + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		want, body, _ := strings.Cut(string(text), "\n")
		object := map[string]any{}
		if err := json.Unmarshal([]byte(body), &object); err != nil {
			t.Fatalf("%s: %v", entry.Name(), err)
		}
		check(entry.Name(), want, normalized(object).(map[string]any))
	}
}

// luaValue is a value as Argo CD hands it to a script.
func luaValue(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, inner := range value {
			table.RawSetString(key, luaValue(state, inner))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, inner := range value {
			table.Append(luaValue(state, inner))
		}
		return table
	case string:
		return lua.LString(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	case bool:
		return lua.LBool(value)
	}
	return lua.LNil
}

func TestArgoCD(t *testing.T) {
	script, err := os.ReadFile("../../deploy/argocd/streamingjob-health.lua")
	if err != nil {
		t.Fatal(err)
	}
	fixtures(t, func(name, want string, object map[string]any) {
		state := lua.NewState()
		defer state.Close()
		state.SetGlobal("obj", luaValue(state, object))
		if err := state.DoString(string(script)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		health, ok := state.Get(-1).(*lua.LTable)
		if !ok {
			t.Fatalf("%s: the script returns %v", name, state.Get(-1))
		}
		if got := health.RawGetString("status").String(); got != argoFor[want] {
			t.Errorf("%s: %s, want %s", name, got, argoFor[want])
		}
		if health.RawGetString("message").String() == "" {
			t.Errorf("%s: no message", name)
		}
	})
}

func TestFlux(t *testing.T) {
	text, err := os.ReadFile("../../deploy/flux/streamingjob-health.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		HealthCheckExprs []map[string]string `yaml:"healthCheckExprs"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil || len(file.HealthCheckExprs) != 1 {
		t.Fatalf("%v: %v", err, file)
	}
	environment, err := cel.NewEnv(
		cel.Variable("metadata", cel.DynType), cel.Variable("spec", cel.DynType), cel.Variable("status", cel.DynType))
	if err != nil {
		t.Fatal(err)
	}
	is := func(name, expression string, object map[string]any) bool {
		ast, issues := environment.Compile(expression)
		if issues.Err() != nil {
			t.Fatalf("%s: %v", expression, issues.Err())
		}
		program, err := environment.Program(ast)
		if err != nil {
			t.Fatal(err)
		}
		value, _, err := program.Eval(object)
		if err != nil {
			t.Fatalf("%s: %s: %v", name, expression, err)
		}
		return value.Value().(bool)
	}
	fixtures(t, func(name, want string, object map[string]any) {
		got := "inProgress"
		for _, kind := range []string{"inProgress", "failed", "current"} { // the order of Flux
			if is(name, file.HealthCheckExprs[0][kind], object) {
				got = kind
				break
			}
		}
		if got != fluxFor[want] {
			t.Errorf("%s: %s, want %s", name, got, fluxFor[want])
		}
	})
}
